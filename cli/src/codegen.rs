//! `graft codegen ts`: a module's reducers as TypeScript types for the package `graft-client`.
//!
//! One interface with a member for each reducer, under the reducer's own name and with its
//! documentation; the client makes methods in camel case of them. What is written depends on the
//! description alone, so that a build can compare it.
//!
//! Invariant: whatever a module says of itself, the output is one comment, one interface and at most
//! one declaration: names are checked by the host, and documentation cannot leave its comment.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use coordinator::http::{ParamInfo, ParamType, ReducerInfo, VolumeInfo, reducers};
use graft::VolumeName;
use reducers_host::{Host, HostLimits, Runtime as _};

use crate::args::{CodegenLanguage, CodegenTs};
use crate::{Outcome, http, output};

pub async fn run(language: CodegenLanguage) -> anyhow::Result<Outcome> {
    let CodegenLanguage::Ts(args) = language;
    let (reducers, source, name) = match (&args.module, &args.volume) {
        (Some(module), _) => {
            let bytes = read_module(module)?;
            let stem = module.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let name = stem.strip_suffix("_reducer").unwrap_or(&stem).to_owned();
            (describe(bytes).await.with_context(|| format!("cannot use `{}`", module.display()))?, stem, name)
        }
        (None, Some(volume)) => {
            let info = from_server(&args, volume).await?;
            (info.reducers, info.name.clone(), info.name)
        }
        (None, None) => bail!("nothing to read types from: give a MODULE.wasm, or --volume NAME of a server"),
    };
    let interface = match &args.name {
        Some(name) if is_type_name(name) => name.clone(),
        Some(name) => bail!("`{name}` is not a type's name: use letters and digits, a letter first"),
        None => interface_name(&name),
    };
    let text = typescript(&reducers, &source, &interface, !args.no_register);
    match &args.out {
        Some(file) => {
            let written = write_if_changed(file, &text)?;
            let word = if written { "wrote" } else { "unchanged:" };
            output::line(&format!("{word} {}", file.display()))?;
        }
        None => output::line(text.trim_end())?,
    }
    Ok(Outcome::Done)
}

async fn from_server(args: &CodegenTs, volume: &str) -> anyhow::Result<VolumeInfo> {
    let name: VolumeName = volume.parse()?;
    let info = http::volume_info(&args.url, &name, args.connect_timeout).await?;
    if info.module.is_none() {
        bail!("volume `{name}` has no module; `graft deploy MODULE.wasm --volume {name}` puts one in force");
    }
    Ok(info)
}

/// A module's bytes.
pub fn read_module(module: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(module).with_context(|| {
        let file = module.display();
        format!("cannot read `{file}`; `cargo build --target wasm32-unknown-unknown` makes a module")
    })
}

/// What a module says of itself. Compiles it.
pub async fn describe(module: Vec<u8>) -> anyhow::Result<Vec<ReducerInfo>> {
    let described = tokio::task::spawn_blocking(move || -> anyhow::Result<Vec<ReducerInfo>> {
        let loaded = Host::new(HostLimits::default())?.load(&module)?;
        Ok(reducers(loaded.description()))
    });
    described.await.context("reading the module panicked")?
}

/// Writes `text` unless the file holds it already; answers whether it did. Makes missing folders.
pub fn write_if_changed(file: &Path, text: &str) -> anyhow::Result<bool> {
    if std::fs::read_to_string(file).is_ok_and(|found| found == text) {
        return Ok(false);
    }
    let cannot = || format!("cannot write `{}`", file.display());
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder).with_context(cannot)?;
    }
    std::fs::write(file, text).with_context(cannot)?;
    Ok(true)
}

/// The types of `reducers`; `source` says in the first line where they are from.
pub fn typescript(reducers: &[ReducerInfo], source: &str, interface: &str, register: bool) -> String {
    let mut out = String::new();
    let mut push = |line: &str| {
        out.push_str(line);
        out.push('\n');
    };
    push(&format!("// Made by `graft codegen ts` from `{}`. Do not edit.", comment(source)));
    push("");
    if reducers.iter().flat_map(|r| &r.params).any(|p| p.ty == ParamType::Json) {
        push("import type { JsonValue } from \"graft-client\";");
        push("");
    }
    push(&format!("/** The reducers of `{}`, and what they take. */", comment(source)));
    push(&format!("export interface {interface} {{"));
    for reducer in reducers {
        for line in doc(&reducer.doc) {
            push(&format!("  {line}"));
        }
        push(&format!("  {}: {};", reducer.name, arguments(&reducer.params)));
    }
    push("}");
    if register {
        push("");
        push("declare module \"graft-client\" {");
        push("  interface Register {");
        push(&format!("    mutations: {interface};"));
        push("  }");
        push("}");
    }
    out
}

fn arguments(params: &[ParamInfo]) -> String {
    if params.is_empty() {
        return "Record<string, never>".into();
    }
    let mut out = String::from("{");
    for (at, param) in params.iter().enumerate() {
        let (mark, or_null) = if param.optional { ("?", " | null") } else { ("", "") };
        let between = if at > 0 { ";" } else { "" };
        // Writing to a string cannot fail.
        let _ = write!(out, "{between} {}{mark}: {}{or_null}", param.name, type_name(param.ty));
    }
    out + " }"
}

fn type_name(ty: ParamType) -> &'static str {
    match ty {
        ParamType::Text => "string",
        ParamType::Integer => "number | bigint",
        ParamType::Real => "number",
        ParamType::Boolean => "boolean",
        ParamType::Blob => "Uint8Array",
        ParamType::Json => "JsonValue",
    }
}

/// Documentation as a comment's lines.
fn doc(text: &str) -> Vec<String> {
    let lines: Vec<String> = text.trim().lines().map(|line| comment(line).trim_end().to_owned()).collect();
    match lines.as_slice() {
        [] => Vec::new(),
        [line] => vec![format!("/** {line} */")],
        lines => {
            let inner = lines.iter().map(|line| format!(" * {line}").trim_end().to_owned());
            ["/**".into()].into_iter().chain(inner).chain([" */".into()]).collect()
        }
    }
}

/// Text that stays inside of its comment, on its line.
fn comment(text: &str) -> String {
    let tame = |c: char| if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') { ' ' } else { c };
    text.chars().map(tame).collect::<String>().replace("*/", "* /")
}

/// `todo-list` as `TodoListMutations`.
pub fn interface_name(name: &str) -> String {
    let mut out = String::new();
    for word in name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()) {
        let (first, rest) = word.split_at(1);
        out.push_str(&first.to_ascii_uppercase());
        out.push_str(rest);
    }
    if !out.starts_with(|c: char| c.is_ascii_alphabetic()) {
        out.insert_str(0, "App");
    }
    out + "Mutations"
}

fn is_type_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.bytes().all(|b| b.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_and_shape_is_written() {
        let param = |name: &str, ty, optional| ParamInfo { name: name.into(), ty, optional };
        let all = [
            param("t", ParamType::Text, false),
            param("i", ParamType::Integer, true),
            param("r", ParamType::Real, false),
            param("b", ParamType::Boolean, false),
            param("x", ParamType::Blob, false),
            param("j", ParamType::Json, true),
        ];
        let reducers = [
            ReducerInfo {
                name: "all_types".into(),
                doc: "First. */ alert(1); /*\r\n\nSecond\u{2028}.".into(),
                params: all.into(),
            },
            ReducerInfo { name: "nothing".into(), doc: String::new(), params: Vec::new() },
        ];
        let expected = r#"// Made by `graft codegen ts` from `x* / y`. Do not edit.

import type { JsonValue } from "graft-client";

/** The reducers of `x* / y`, and what they take. */
export interface XMutations {
  /**
   * First. * / alert(1); /*
   *
   * Second .
   */
  all_types: { t: string; i?: number | bigint | null; r: number; b: boolean; x: Uint8Array; j?: JsonValue | null };
  nothing: Record<string, never>;
}
"#;
        assert_eq!(typescript(&reducers, "x*/ y", "XMutations", false), expected);
    }

    #[test]
    fn names_become_types() {
        for (name, expected) in [
            ("todo", "TodoMutations"),
            ("todo-list_2.b", "TodoList2BMutations"),
            ("2do", "App2doMutations"),
            ("é", "AppMutations"),
        ] {
            assert_eq!(interface_name(name), expected);
            assert!(is_type_name(expected));
        }
        assert!(!is_type_name("a b") && !is_type_name("") && !is_type_name("x{}"));
    }
}
