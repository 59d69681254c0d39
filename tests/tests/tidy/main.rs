//! What the documents and the style promise about the code, checked.
//!
//! ARCHITECTURE.md holds the rules as tables (who may import whom, every dependency with its reason,
//! where `unsafe` is); these tests read them there, so that the document is what is checked. Each
//! finding is a line `file:line: what is wrong; what to do`.
//!
//! | module | checks |
//! | --- | --- |
//! | [`imports`] | import edges and dependencies against ARCHITECTURE.md |
//! | [`documents`] | paths, links, commands and crates that documents name; the form of decisions |
//! | [`code`] | leftovers, `unsafe`, module headers, references to other folders |
//! | [`files`] | reading the project's files and the documents' tables |
//!
//! Invariant: every check is a function of text, with a test that shows it find something.

mod code;
mod documents;
mod files;
mod imports;

use files::Project;

/// Fails with every finding, if there are any.
fn nothing_found(findings: Vec<String>) {
    assert!(findings.is_empty(), "\n{}\n({} findings)\n", findings.join("\n"), findings.len());
}

#[test]
fn crates_import_only_what_the_architecture_allows() {
    let project = Project::read();
    nothing_found(imports::edges(&project.architecture(), &project.packages()));
}

#[test]
fn every_dependency_has_a_reason_and_a_user() {
    let project = Project::read();
    let manifest = project.text("Cargo.toml");
    nothing_found(imports::dependencies(&project.architecture(), manifest, &project.packages()));
}

#[test]
fn documents_name_only_what_exists() {
    let project = Project::read();
    nothing_found(documents::references(&project));
}

#[test]
fn sources_name_only_documents_that_exist() {
    let project = Project::read();
    nothing_found(documents::named_in_sources(&project));
}

#[test]
fn samples_in_the_readme_are_compiled() {
    let project = Project::read();
    nothing_found(documents::samples(project.text("README.md"), project.text("tests/src/lib.rs")));
}

#[test]
fn decisions_have_one_form() {
    let project = Project::read();
    nothing_found(documents::decisions(&project));
}

#[test]
fn nothing_is_left_unfinished() {
    let project = Project::read();
    nothing_found(project.sources().flat_map(|(path, text)| code::leftovers(path, text)).collect());
}

#[test]
fn unsafe_is_where_the_architecture_says() {
    let project = Project::read();
    nothing_found(code::unsafe_code(&project.architecture(), project.rust()));
}

#[test]
fn every_crate_root_has_a_header() {
    let project = Project::read();
    nothing_found(code::headers(&project));
}

#[test]
fn the_project_stands_alone() {
    let project = Project::read();
    nothing_found(project.files().flat_map(|(path, text)| code::strangers(path, text)).collect());
}

#[test]
fn exceptions_to_lints_have_reasons() {
    let project = Project::read();
    nothing_found(project.rust().flat_map(|(path, text)| code::reasons(path, text)).collect());
}
