//! A directory of static files at `/`: the page of an app, beside the API under `/v1`.
//!
//! Files are read at each request, so that a page that was built again is served at once. A path whose
//! last part has no extension and names no file is the page's own business, and is answered with
//! `index.html`; a missing `app.js` stays missing.
//!
//! Invariants: nothing outside the directory is read, whatever the path says and wherever links point;
//! names that begin with a dot are not there; only files whose name carries a hash of their content are
//! cached without asking again.

use std::io;
use std::path::{Path, PathBuf};

use axum::body::Body;
use axum::http::{Method, Response, header};

use crate::http::ApiError;

/// The file that stands for the page.
const INDEX: &str = "index.html";
/// Characters of a hash in a file's name, at least: what bundlers write.
const HASH_CHARS_MIN: usize = 8;

/// The directory.
#[derive(Debug)]
pub(crate) struct Web {
    /// Canonical: absolute and without links.
    root: PathBuf,
}

/// A file that was found.
#[derive(Debug)]
struct Found {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Web {
    /// Finds the directory.
    ///
    /// # Errors
    ///
    /// It cannot be read, or holds no `index.html`.
    pub(crate) fn open(dir: &Path) -> io::Result<Web> {
        let root = dir.canonicalize()?;
        std::fs::metadata(root.join(INDEX))?;
        Ok(Web { root })
    }

    /// Answers a request that no route took. The files are read on a thread that may block.
    ///
    /// # Errors
    ///
    /// - [`ApiError::NoRoute`]: no such file, or a path under `/v1`.
    /// - [`ApiError::Method`]: neither GET nor HEAD.
    /// - [`ApiError::File`]: there is such a file, and it cannot be read.
    pub(crate) async fn serve(&self, method: &Method, path: &str) -> Result<Response<Body>, ApiError> {
        if path == "/v1" || path.starts_with("/v1/") {
            return Err(ApiError::NoRoute);
        }
        if method != Method::GET && method != Method::HEAD {
            return Err(ApiError::Method);
        }
        let (root, wanted) = (self.root.clone(), path.to_string());
        let found = tokio::task::spawn_blocking(move || find(&root, &wanted)).await;
        let found = found
            .map_err(io::Error::other)
            .flatten()
            .map_err(|error| ApiError::File { path: shown(path), message: error.to_string() })?;
        let Found { path, bytes } = found.ok_or(ApiError::NoRoute)?;
        let mut response = Response::new(Body::from(bytes));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type(&path)));
        headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static(cache_control(&path)));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, header::HeaderValue::from_static("nosniff"));
        Ok(response)
    }
}

/// The file behind a request's path, if there is one.
fn find(root: &Path, path: &str) -> io::Result<Option<Found>> {
    let Some(parts) = parts(path) else { return Ok(None) };
    if let Some(found) = read(root, &parts.iter().collect::<PathBuf>())? {
        return Ok(Some(found));
    }
    if parts.last().is_some_and(|last| last.contains('.')) { Ok(None) } else { read(root, Path::new(INDEX)) }
}

/// Reads a file of the directory. What is absent, no file, or elsewhere by a link is `None`.
fn read(root: &Path, part: &Path) -> io::Result<Option<Found>> {
    let path = match root.join(part).canonicalize() {
        Ok(path) => path,
        // A part of the path is a file, or too long for a name: then there is nothing either.
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::InvalidFilename => {
                return Ok(None);
            }
            _ => return Err(error),
        },
    };
    if !path.starts_with(root) || !path.is_file() {
        return Ok(None);
    }
    let bytes = std::fs::read(&path)?;
    Ok(Some(Found { path, bytes }))
}

/// The parts of a request's path, decoded. `None` where one could lead elsewhere or is hidden.
fn parts(path: &str) -> Option<Vec<String>> {
    let decoded = percent_decoded(path)?;
    let parts: Vec<String> = decoded.split('/').filter(|part| !part.is_empty()).map(String::from).collect();
    let plain = |part: &String| !part.starts_with('.') && !part.contains(['\\', ':', '\0']);
    parts.iter().all(plain).then_some(parts)
}

/// `%41` as `A`. `None` where it is no UTF-8, or a `%` begins nothing.
fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => u8::try_from(digit(bytes.next())? * 16 + digit(bytes.next())?).ok()?,
            other => other,
        });
    }
    String::from_utf8(decoded).ok()
}

fn content_type(path: &Path) -> &'static str {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    match extension.to_ascii_lowercase().as_str() {
        "html" => "text/html; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "json" | "map" => "application/json",
        "webmanifest" => "application/manifest+json",
        "wasm" => "application/wasm",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "webp" => "image/webp",
        "ico" => "image/x-icon",
        "woff2" => "font/woff2",
        "txt" | "md" => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}

fn cache_control(path: &Path) -> &'static str {
    if is_hashed(path) { "public, max-age=31536000, immutable" } else { "no-cache" }
}

/// Whether the name is one that a bundler made from the content: `assets/index-BxQ3k_9a.js`.
fn is_hashed(path: &Path) -> bool {
    let in_assets = path.parent().and_then(Path::file_name).is_some_and(|folder| folder == "assets");
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let hash = |tail: &str| {
        tail.len() >= HASH_CHARS_MIN
            && tail.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    // A hash may hold a dash itself, so what follows the first one counts.
    in_assets && stem.split_once('-').is_some_and(|(_, tail)| hash(tail))
}

fn shown(path: &str) -> String {
    path.chars().take(100).collect::<String>().escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A page, and a secret beside it.
    fn site() -> (tempfile::TempDir, Web) {
        let dir = tempfile::tempdir().unwrap();
        let web = dir.path().join("web");
        std::fs::create_dir_all(web.join("assets")).unwrap();
        std::fs::write(dir.path().join("secret.txt"), "secret").unwrap();
        for (name, text) in [
            ("index.html", "index"),
            ("sw.js", "worker"),
            (".env", "hidden"),
            ("assets/index-BxQ3k_9a.js", "app"),
            ("with space.css", "css"),
        ] {
            std::fs::write(web.join(name), text).unwrap();
        }
        std::os::unix::fs::symlink(dir.path().join("secret.txt"), web.join("link.txt")).unwrap();
        std::os::unix::fs::symlink(dir.path(), web.join("up")).unwrap();
        let opened = Web::open(&web).unwrap();
        (dir, opened)
    }

    async fn get(web: &Web, path: &str) -> Result<(String, String, String), ApiError> {
        let uri: axum::http::Uri = path.parse().unwrap();
        let response = web.serve(&Method::GET, uri.path()).await?;
        let head = |name| response.headers()[name].to_str().unwrap().to_string();
        let (kind, cache) = (head(header::CONTENT_TYPE), head(header::CACHE_CONTROL));
        let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        Ok((String::from_utf8(body.to_vec()).unwrap(), kind, cache))
    }

    #[tokio::test]
    async fn files_come_with_their_type_and_how_long_they_keep() {
        let (_dir, web) = site();
        for (path, body, kind, cached) in [
            ("/", "index", "text/html; charset=utf-8", false),
            ("/index.html", "index", "text/html; charset=utf-8", false),
            ("/sw.js", "worker", "text/javascript; charset=utf-8", false),
            ("/assets/index-BxQ3k_9a.js", "app", "text/javascript; charset=utf-8", true),
            ("/with%20space.css?x=1", "css", "text/css; charset=utf-8", false),
            // The page's own paths.
            ("/list/home", "index", "text/html; charset=utf-8", false),
            ("/assets", "index", "text/html; charset=utf-8", false),
        ] {
            let (found, is, cache) = get(&web, path).await.unwrap();
            assert_eq!((found.as_str(), is.as_str()), (body, kind), "{path}");
            assert_eq!(cache.contains("immutable"), cached, "{path}: {cache}");
            assert_eq!(cache == "no-cache", !cached, "{path}: {cache}");
        }
    }

    #[tokio::test]
    async fn nothing_outside_the_directory_is_read() {
        let (_dir, web) = site();
        for path in [
            "/../secret.txt",
            "/%2e%2e/secret.txt",
            "/..%2fsecret.txt",
            "/assets/../../secret.txt",
            "/assets/%2e%2e%2f%2e%2e%2fsecret.txt",
            "/..%5csecret.txt",
            "//secret.txt",
            "/link.txt",
            "/up/secret.txt",
            "/.env",
            "/%2eenv",
            "/a%00.txt",
            "/%ff.txt",
            "/%4",
            "/missing.js",
            "/sw.js/x.js",
            "/v1",
            "/v1/nothing",
        ] {
            let answer = get(&web, path).await;
            assert!(matches!(answer, Err(ApiError::NoRoute)), "{path}: {answer:?}");
        }
        // Harmless, and still not the secret.
        let deep = format!("/{}", "a".repeat(5000));
        assert!(matches!(get(&web, &format!("{deep}.js")).await, Err(ApiError::NoRoute)));
        assert!(matches!(web.serve(&Method::POST, "/").await, Err(ApiError::Method)));
    }

    #[test]
    fn only_names_with_a_hash_are_kept_for_good() {
        for name in ["assets/index-BxQ3k_9a.js", "web/assets/app-a-b_c-d12.css"] {
            assert!(is_hashed(Path::new(name)), "{name}");
        }
        for name in ["index.html", "assets/index.js", "assets/app-1.js", "index-BxQ3k_9a.js", "assets/-"] {
            assert!(!is_hashed(Path::new(name)), "{name}");
        }
    }

    #[test]
    fn a_directory_without_a_page_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Web::open(dir.path()).is_err());
        assert!(Web::open(&dir.path().join("none")).is_err());
    }
}
