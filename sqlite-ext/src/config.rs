//! Which store and which directory. The URI says it (`file:NAME?vfs=graft&remote=…&data=…`); what it
//! leaves out `graft.toml` in the working directory says, and what that leaves out the environment
//! (`GRAFT_REMOTE`, `GRAFT_DATA`). What cached pages may take in the directory is `disk_bytes` of the URI,
//! or `GRAFT_DISK_BYTES`.

use std::path::PathBuf;

/// The file's name.
const FILE: &str = "graft.toml";

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// The object store's URL.
    pub remote: Option<String>,
    /// The replica's directory.
    pub data: Option<PathBuf>,
    /// Bytes that cached pages may take in it; `None` for the engine's default.
    pub disk_bytes: Option<u64>,
}

impl Config {
    /// Puts `parameters` of a URI before what the file and the environment say.
    pub fn find(parameters: &[(&'static str, String)]) -> Result<Config, String> {
        let written = match std::fs::read_to_string(FILE) {
            Ok(text) => parse(&text)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(format!("{FILE}: {error}")),
        };
        let find = |name: &str, variable: &str| {
            let given = parameters.iter().find(|(key, _)| *key == name).map(|(_, value)| value.clone());
            let written = || written.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
            given.or_else(written).or_else(|| std::env::var(variable).ok()).filter(|value| !value.is_empty())
        };
        Ok(Config {
            remote: find("remote", "GRAFT_REMOTE"),
            data: find("data", "GRAFT_DATA").map(PathBuf::from),
            disk_bytes: find("disk_bytes", "GRAFT_DISK_BYTES").map(|text| bytes(&text)).transpose()?,
        })
    }

    /// The store's URL, or what to do about it.
    pub fn store(&self) -> Result<String, String> {
        self.remote.clone().ok_or_else(|| {
            format!(
                "no store is given: add remote=URL to the file's URI, or to {FILE}, or set GRAFT_REMOTE; a file that \
                 is no volume is file:PATH?vfs=unix"
            )
        })
    }
}

fn bytes(text: &str) -> Result<u64, String> {
    text.trim()
        .parse()
        .map_err(|_| format!("disk_bytes or GRAFT_DISK_BYTES is `{text}`: give a number of bytes"))
}

/// The part of TOML that two settings need: `name = "value"` lines and comments.
fn parse(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut found = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let setting = line.split_once('=').and_then(|(name, value)| {
            let value = value.trim().strip_prefix('"')?;
            let (value, rest) = value.split_once('"')?;
            let rest = rest.trim();
            let plain = !value.contains('\\') && (rest.is_empty() || rest.starts_with('#'));
            plain.then(|| (name.trim().to_owned(), value.to_owned()))
        });
        match setting {
            Some((name, value)) if name == "remote" || name == "data" => found.push((name, value)),
            _ => {
                return Err(format!(
                    "{FILE}, line {number}: expected remote = \"URL\" or data = \"DIR\", without backslashes"
                ));
            }
        }
    }
    Ok(found)
}
