//! Who may talk to a server that has no authentication: programs on this machine, and pages that came
//! from it.
//!
//! A page from elsewhere can make a browser connect to loopback. Two headers give it away: `Origin` is
//! then the page's, and where the page's own name was pointed at 127.0.0.1 (DNS rebinding), `Host` is
//! that name. So both must be loopback; `Origin` may be absent, as it is for programs.

use std::net::IpAddr;

use axum::extract::Request;
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::Response;

use crate::http::ApiError;

/// Middleware: refuses what the module's text says.
pub(crate) async fn check(request: Request, next: Next) -> Result<Response, ApiError> {
    allowed(request.headers())?;
    Ok(next.run(request).await)
}

fn allowed(headers: &HeaderMap) -> Result<(), ApiError> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next().and_then(|host| host.to_str().ok()).unwrap_or_default();
    if !is_loopback(host) || hosts.next().is_some() {
        return Err(ApiError::Forbidden { header: "Host", found: shown(host) });
    }
    for origin in headers.get_all(header::ORIGIN) {
        let origin = origin.to_str().unwrap_or("(not text)");
        let local = origin.split_once("://").is_some_and(|(scheme, authority)| {
            (scheme == "http" || scheme == "https") && is_loopback(authority)
        });
        if !local {
            return Err(ApiError::Forbidden { header: "Origin", found: shown(origin) });
        }
    }
    Ok(())
}

/// Whether `HOST` or `HOST:PORT` is this machine.
fn is_loopback(authority: &str) -> bool {
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !port.is_empty() => host,
        Some(_) | None => authority,
    };
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn shown(value: &str) -> String {
    value.chars().take(100).collect::<String>().escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(host: &str, origin: Option<&str>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, origin.parse().unwrap());
        }
        headers
    }

    #[test]
    fn only_this_machine_and_its_pages_are_let_in() {
        for host in ["127.0.0.1:4600", "localhost", "LOCALHOST:1", "[::1]:4600", "127.8.9.1"] {
            assert!(allowed(&headers(host, None)).is_ok(), "{host}");
        }
        for host in
            ["", "evil.example", "127.0.0.1.evil.example:4600", "0.0.0.0", "localhost.evil", "10.0.0.1"]
        {
            assert!(allowed(&headers(host, None)).is_err(), "{host}");
        }
        let host = "127.0.0.1:4600";
        for origin in ["http://localhost:5173", "https://127.0.0.1", "http://[::1]:8080"] {
            assert!(allowed(&headers(host, Some(origin))).is_ok(), "{origin}");
        }
        for origin in
            ["null", "", "https://evil.example", "http://localhost.evil", "file://", "http://127.0.0.1@evil"]
        {
            assert!(allowed(&headers(host, Some(origin))).is_err(), "{origin}");
        }
        assert!(allowed(&HeaderMap::new()).is_err(), "no host");
    }
}
