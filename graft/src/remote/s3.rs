//! Opening `s3://BUCKET/PREFIX`: S3, R2, Ceph RGW and whatever else honours `If-None-Match: *`.
//!
//! Credentials, region and endpoint come from the `AWS_*` variables, as every S3 tool reads them:
//! `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_REGION`,
//! `AWS_ENDPOINT_URL`, and `AWS_ALLOW_HTTP=true` for an endpoint without TLS. `docs/operations.md`
//! is the page for whoever runs it.
//!
//! Bounds: a request that nobody answers fails after [`REQUEST_TIMEOUT`], and what may be repeated
//! is repeated for 10 s at most, so no request takes longer than 40 s unless the environment says so.

use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, S3ConditionalPut};
use object_store::{BackoffConfig, ClientConfigKey, RetryConfig};

use super::{ObjectRemote, OpenRemoteError};

/// No answer in this time and the request counts as failed. Long enough for a segment on a slow
/// line; the caller hears `Unavailable` and decides.
const REQUEST_TIMEOUT: &str = "30 seconds";
const CONNECT_TIMEOUT: &str = "5 seconds";

/// Few and short: the driver's own back-off follows.
///
/// The client's repeats are harmless to a create. It repeats one that got a 5xx or never left; if
/// the first had landed, the repeat is answered "taken", which a [`Remote`](super::Remote) may
/// answer for an object of our own: the random id in the object settles whose it is.
fn retries() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(50),
            max_backoff: Duration::from_secs(1),
            base: 2.0,
        },
        max_retries: 3,
        retry_timeout: Duration::from_secs(10),
    }
}

/// Builds the client for `url`; `shown` is the same without credentials. Sends nothing.
pub(super) fn open(url: &str, shown: String) -> Result<ObjectRemote, OpenRemoteError> {
    let malformed =
        |message: &str| OpenRemoteError::Malformed { url: shown.clone(), message: message.into() };
    let parsed = url::Url::parse(url).map_err(|e| malformed(&format!("{e}; write s3://BUCKET/PREFIX")))?;
    if !parsed.username().is_empty() || parsed.password().is_some() {
        return Err(malformed(
            "credentials do not belong in a URL: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        ));
    }
    if parsed.query().is_some() || parsed.fragment().is_some() || parsed.port().is_some() {
        return Err(malformed("write s3://BUCKET/PREFIX; an endpoint is set by AWS_ENDPOINT_URL"));
    }
    let bucket = parsed.host_str().filter(|bucket| !bucket.is_empty());
    let bucket = bucket.ok_or_else(|| malformed("no bucket: write s3://BUCKET/PREFIX"))?;
    let prefix = object_store::path::Path::from_url_path(parsed.path())
        .map_err(|e| malformed(&format!("the prefix is not a path: {e}")))?;

    let configuration = |message: String| OpenRemoteError::Configuration { url: shown.clone(), message };
    let builder = AmazonS3Builder::from_env();
    let setting = |key| builder.get_config_value(&key).unwrap_or_default();
    let endpoint = setting(AmazonS3ConfigKey::Endpoint);
    let allow_http = AmazonS3ConfigKey::Client(ClientConfigKey::AllowHttp);
    if endpoint.starts_with("http://") && setting(allow_http) != "true" {
        let message = "the endpoint has no TLS: set AWS_ALLOW_HTTP=true if you mean it, or use https://";
        return Err(configuration(message.into()));
    }
    if setting(AmazonS3ConfigKey::AccessKeyId).is_empty()
        != setting(AmazonS3ConfigKey::SecretAccessKey).is_empty()
    {
        return Err(configuration("one half of the credentials is missing: set both".into()));
    }

    super::install_tls();
    // What the environment sets stays.
    let mut builder = builder;
    for (key, value) in
        [(ClientConfigKey::Timeout, REQUEST_TIMEOUT), (ClientConfigKey::ConnectTimeout, CONNECT_TIMEOUT)]
    {
        let key = AmazonS3ConfigKey::Client(key);
        if builder.get_config_value(&key).is_none() {
            builder = builder.with_config(key, value);
        }
    }
    let store = builder
        .with_bucket_name(bucket)
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .with_retry(retries())
        .build()
        .map_err(|e| configuration(e.to_string()))?;
    let store = Arc::new(store);
    let place = match endpoint.trim_end_matches('/') {
        "" => shown.clone(),
        endpoint => format!("{shown} at {endpoint}"),
    };
    Ok(ObjectRemote::new(store.clone(), prefix.as_ref(), shown).with_pages(store).with_place(place))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Output};

    use super::super::RemoteError;

    /// Runs one of this module's ignored tests in a process with this environment and no other
    /// `AWS_*` variable.
    fn with_environment(test: &str, variables: &[(&str, &str)]) -> Output {
        let mut child = Command::new(std::env::current_exe().unwrap());
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("AWS_")) {
                child.env_remove(name);
            }
        }
        child.args(["--exact", &format!("remote::s3::tests::{test}"), "--ignored", "--nocapture"]);
        let output = child.envs(variables.iter().copied()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("running 1 test"), "{text}");
        output
    }

    fn passes(test: &str, variables: &[(&str, &str)]) {
        let output = with_environment(test, variables);
        assert!(output.status.success(), "{output:?}");
    }

    #[test]
    fn an_endpoint_where_nobody_listens_is_unavailable_soon() {
        // Bound and closed again, so that nobody listens there.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let endpoint = format!("http://127.0.0.1:{port}");
        passes("child_meets_a_closed_port", &settings(&endpoint));
    }

    #[tokio::test]
    #[ignore = "a child process of the test above, which sets its environment"]
    async fn child_meets_a_closed_port() {
        let remote = super::super::open("s3://bucket/pre/fix").unwrap();
        assert_eq!(remote.url(), "s3://bucket/pre/fix");
        let bound = std::time::Duration::from_secs(20);
        let requests = async {
            let error = remote.create("a/b", "x".into()).await.expect_err("nobody listens");
            assert!(matches!(&error, RemoteError::Unavailable { key, .. } if key == "a/b"), "{error:?}");
            let text = error.to_string();
            assert!(text.contains("check that it is reachable") && !text.contains("hush"), "{text}");
            let error = remote.list("", None, 1).await.expect_err("nobody listens");
            assert!(matches!(error, RemoteError::Unavailable { .. }), "{error:?}");
            let error = remote.get_range("a/b", 0..4096).await.expect_err("nobody listens");
            assert!(matches!(error, RemoteError::Unavailable { .. }), "{error:?}");
        };
        tokio::time::timeout(bound, requests).await.expect("bounded");
    }

    fn settings(endpoint: &str) -> Vec<(&'static str, &str)> {
        vec![
            ("AWS_ACCESS_KEY_ID", "id"),
            ("AWS_SECRET_ACCESS_KEY", "hush"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ENDPOINT_URL", endpoint),
            ("AWS_ALLOW_HTTP", "true"),
        ]
    }

    /// Whoever connects is never answered: a gateway that hangs.
    #[test]
    fn an_endpoint_that_never_answers_is_unavailable_in_time() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let mut settings = settings(&endpoint);
        // The default is 30 s; this also shows that it can be set.
        settings.push(("AWS_TIMEOUT", "1 second"));
        passes("child_meets_silence", &settings);
    }

    #[tokio::test]
    #[ignore = "a child process of the test above, which sets its environment"]
    async fn child_meets_silence() {
        let remote = super::super::open("s3://bucket").unwrap();
        let requests = async {
            // It may have happened, so it is not sent again here.
            let error = remote.create("a/b", "x".into()).await.expect_err("silence");
            assert!(matches!(error, RemoteError::Unavailable { .. }), "{error:?}");
            let error = remote.get("a/b").await.expect_err("silence");
            assert!(matches!(error, RemoteError::Unavailable { .. }), "{error:?}");
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), requests).await.expect("bounded");
    }

    /// A server that answers what the key says, as stores do; the words are from theirs.
    fn answering() -> String {
        use std::io::{Read as _, Write as _};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                // The bodies here are empty, so a request is its head.
                let (mut head, mut byte) = (Vec::new(), [0]);
                while !head.ends_with(b"\r\n\r\n") {
                    stream.read_exact(&mut byte).unwrap();
                    head.extend(byte);
                }
                let head = String::from_utf8_lossy(&head).into_owned();
                let (status, code) = match head.split('/').nth(2).unwrap_or_default().split(' ').next() {
                    Some("conflict") => ("409 Conflict", "ConditionalRequestConflict"),
                    Some("taken") => ("412 Precondition Failed", "PreconditionFailed"),
                    Some("busy") => ("503 Slow Down", "SlowDown"),
                    Some("elsewhere") => ("400 Bad Request", "AuthorizationHeaderMalformed"),
                    Some("moved") => ("301 Moved Permanently", "PermanentRedirect"),
                    Some("bucketless") => ("404 Not Found", "NoSuchBucket"),
                    Some("denied") => ("403 Forbidden", "AccessDenied"),
                    other => panic!("{other:?}: {head}"),
                };
                let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code></Error>");
                let length = body.len();
                let answer = format!(
                    "HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
                );
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        endpoint
    }

    /// What real answers become on their way through the client: a racing creator's 409 above all.
    #[test]
    fn answers_keep_their_meaning() {
        passes("child_meets_answers", &settings(&answering()));
    }

    #[tokio::test]
    #[ignore = "a child process of the test above, which sets its environment"]
    async fn child_meets_answers() {
        let remote = super::super::open("s3://bucket").unwrap();
        for (key, meaning, words) in [
            ("conflict", "Unavailable", "in flight"),
            ("taken", "AlreadyExists", "exists already"),
            ("busy", "Unavailable", "SlowDown"),
            ("elsewhere", "Refused", "AWS_REGION"),
            ("moved", "Refused", "AWS_REGION"),
            ("bucketless", "Refused", "the bucket of `s3://bucket` does not exist"),
            ("denied", "Refused", "AWS_SECRET_ACCESS_KEY"),
        ] {
            let error = remote.create(key, bytes::Bytes::new()).await.expect_err(key);
            assert!(format!("{error:?}").starts_with(meaning), "{key}: {error:?}");
            assert!(error.to_string().contains(words) && error.key() == key, "{key}: {error}");
        }
    }

    #[test]
    fn an_endpoint_without_tls_wants_to_be_meant() {
        passes("child_has_no_tls", &[("AWS_ENDPOINT_URL", "http://127.0.0.1:1")]);
        passes("child_has_half_its_credentials", &[("AWS_ACCESS_KEY_ID", "id")]);
    }

    #[test]
    #[ignore = "a child process of the test above, which sets its environment"]
    fn child_has_no_tls() {
        let error = super::super::open("s3://bucket").expect_err("http").to_string();
        assert!(error.contains("AWS_ALLOW_HTTP") && error.contains("s3://bucket"), "{error}");
    }

    #[test]
    #[ignore = "a child process of the test above, which sets its environment"]
    fn child_has_half_its_credentials() {
        let error = super::super::open("s3://bucket").expect_err("half").to_string();
        assert!(error.contains("AWS_SECRET_ACCESS_KEY"), "{error}");
    }
}
