//! `graft new`: an app to begin with, from the templates in this crate.
//!
//! The SDK and the TypeScript client are not published yet, so the app names them by their path in a
//! checkout of this project.
//!
//! Invariant: a folder that exists is not touched.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use coordinator::http::{ParamInfo, ParamType, ReducerInfo};

use crate::args::New;
use crate::{Outcome, codegen, output};

/// Where this program was built.
const BUILT_AT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// The longest name, in bytes.
const NAME_BYTES_MAX: usize = 50;

/// Where each file goes, and what it is made from.
const FILES: [(&str, &str); 12] = [
    ("README.md", include_str!("../templates/README.md.tmpl")),
    (".gitignore", include_str!("../templates/gitignore.tmpl")),
    ("Cargo.toml", include_str!("../templates/Cargo.toml.tmpl")),
    ("reducer/Cargo.toml", include_str!("../templates/reducer/Cargo.toml.tmpl")),
    ("reducer/src/lib.rs", include_str!("../templates/reducer/lib.rs.tmpl")),
    ("reducer/src/tests.rs", include_str!("../templates/reducer/tests.rs.tmpl")),
    ("web/package.json", include_str!("../templates/web/package.json.tmpl")),
    ("web/tsconfig.json", include_str!("../templates/web/tsconfig.json.tmpl")),
    ("web/index.html", include_str!("../templates/web/index.html.tmpl")),
    ("web/src/main.ts", include_str!("../templates/web/main.ts.tmpl")),
    ("web/src/style.css", include_str!("../templates/web/style.css.tmpl")),
    // So that the page compiles before the first `graft dev`, which writes the same.
    ("web/src/mutations.ts", "{{mutations}}"),
];

pub fn run(args: New) -> anyhow::Result<Outcome> {
    let name = args.name.as_str();
    if !is_app_name(name) {
        bail!(
            "`{}` cannot name an app: use 1 to {NAME_BYTES_MAX} lower-case letters, digits and `-`, a letter first",
            name.escape_debug()
        );
    }
    let asked = args.path.unwrap_or_else(|| PathBuf::from(BUILT_AT));
    let checkout = asked.canonicalize().ok().filter(|path| path.join("reducers/sdk/Cargo.toml").is_file());
    let Some(checkout) = checkout else {
        bail!("`{}` is not a checkout of this project; name one with --path DIR", asked.display());
    };
    let folder = Path::new(name);
    std::fs::create_dir(folder)
        .with_context(|| format!("cannot make the folder `{name}`; choose another name, or remove it"))?;
    for (file, template) in FILES {
        let to = folder.join(file);
        codegen::write_if_changed(&to, &filled(template, name, &checkout))?;
    }
    output::line(&format!("made {name}/; its README says how to run it: `cd {name} && graft dev`"))?;
    say!("note: its SDK and client come from {}, until they are published", checkout.display());
    if !checkout.join("client/package.json").is_file() {
        say!("note: that checkout has no client/ yet, which the page needs");
    }
    Ok(Outcome::Done)
}

fn filled(template: &str, name: &str, checkout: &Path) -> String {
    let interface = codegen::interface_name(name);
    let of = |folder: &str| checkout.join(folder).display().to_string();
    // A JSON string is a TOML string, too.
    let quoted = |text: String| serde_json::Value::String(text).to_string();
    template
        .replace("{{mutations}}", &codegen::typescript(&template_reducers(), name, &interface, true))
        .replace("{{name}}", name)
        .replace("{{Name}}", interface.strip_suffix("Mutations").unwrap_or(&interface))
        .replace("{{path}}", &checkout.display().to_string())
        .replace("{{sdk}}", &quoted(of("reducers/sdk")))
        .replace("{{client}}", &quoted(format!("file:{}", of("client"))))
}

/// What the template's module says of itself; a test compares it with its source.
fn template_reducers() -> Vec<ReducerInfo> {
    let reducer = |name: &str, doc: &str, params: &[(&str, ParamType)]| ReducerInfo {
        name: name.into(),
        doc: doc.into(),
        params: params
            .iter()
            .map(|(name, ty)| ParamInfo { name: (*name).into(), ty: *ty, optional: false })
            .collect(),
    };
    vec![
        reducer(
            "add_item",
            "Adds an item below the others. Its text must not be blank, its id must be new.",
            &[("id", ParamType::Text), ("text", ParamType::Text)],
        ),
        reducer(
            "set_done",
            "Ticks an item off, or makes it open again.",
            &[("id", ParamType::Text), ("done", ParamType::Boolean)],
        ),
        reducer(
            "remove_item",
            "Removes an item. It is no error if it is gone already.",
            &[("id", ParamType::Text)],
        ),
    ]
}

fn is_app_name(name: &str) -> bool {
    name.len() <= NAME_BYTES_MAX
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_everywhere() {
        for name in ["a", "todo-2", &"x".repeat(50)] {
            assert!(is_app_name(name), "{name}");
        }
        for name in ["", "-a", "2a", "A", "a/b", "..", "a b", "é", "%s", &"x".repeat(51)] {
            assert!(!is_app_name(name), "{name}");
        }
    }

    #[test]
    fn every_placeholder_is_filled_and_paths_are_quoted() {
        for (file, template) in FILES {
            let text = filled(template, "my-app", Path::new("/a \"b\"/c"));
            assert!(!text.contains("{{") && !text.contains("}}"), "{file}: {text}");
            if file.ends_with("package.json") {
                let json: serde_json::Value = serde_json::from_str(&text).unwrap();
                assert_eq!(json["dependencies"]["graft-client"], "file:/a \"b\"/c/client");
            }
        }
    }

    /// The types written here are those of the template's source, text by text.
    #[test]
    fn the_types_are_the_templates() {
        let source = include_str!("../templates/reducer/lib.rs.tmpl");
        let found: Vec<String> = source
            .split("#[reducer]\nfn ")
            .skip(1)
            .map(|rest| rest.split_once(") ->").unwrap().0.to_owned())
            .collect();
        let rust = |ty: ParamType| match ty {
            ParamType::Text => "String",
            ParamType::Boolean => "bool",
            ParamType::Integer | ParamType::Real | ParamType::Blob | ParamType::Json => {
                panic!("unused so far")
            }
        };
        let expected: Vec<String> = template_reducers()
            .iter()
            .map(|reducer| {
                assert!(source.contains(&format!("/// {}\n#[reducer]\nfn {}(", reducer.doc, reducer.name)));
                let params = reducer.params.iter().map(|p| format!(", {}: {}", p.name, rust(p.ty)));
                format!("{}(ctx: &mut Ctx{}", reducer.name, params.collect::<String>())
            })
            .collect();
        assert_eq!(found, expected);
    }
}
