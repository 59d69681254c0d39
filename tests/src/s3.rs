//! A real S3 server for tests: Ceph's RADOS Gateway on one node, on loopback, in a temporary folder.
//!
//! Three daemons: a monitor, one object store (BlueStore, so that what was acknowledged survives
//! kill -9) and the gateway that speaks S3. Each runs in the foreground as a child of the test and
//! writes a pid file. All of `ceph.conf` is here; nothing outside the folder is read or written.
//!
//! ```text
//! DIR/ceph.conf  keyring  monmap
//! DIR/mon  osd  rgw        the daemons' data
//! DIR/log/NAME.log         what each printed; shown when it does not start
//! DIR/run/NAME.pid         of those that run
//! ```
//!
//! Invariants: the test that started a server stops it, by dropping it, also on a panic; should the
//! test process itself be killed, a small shell that waits for its end kills the daemons by their
//! pid files. Ports are picked among the free ones; a server keeps its ports when it is started again.
//!
//! Costs: 5 s to start on an idle machine, 0.75 GB of memory, 50 MB of disk.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use object_store::aws::AmazonS3Builder;
use object_store::signer::Signer as _;

use crate::process::free_port;

/// The programs needed, from Debian's `radosgw`, `ceph-mon` and `ceph-osd` and what they bring.
const PROGRAMS: [&str; 7] =
    ["ceph-mon", "ceph-osd", "radosgw", "ceph", "monmaptool", "ceph-authtool", "radosgw-admin"];
const MONITOR: &str = "mon.a";
const OSD: &str = "osd.0";
const GATEWAY: &str = "client.rgw.a";
const ACCESS_KEY: &str = "AKTEST";
const SECRET_KEY: &str = "SKTESTSK";
const REGION: &str = "us-east-1";
/// One node under several busy builds; an idle machine needs a twentieth.
const START_MAX: Duration = Duration::from_secs(120);
/// Times that other ports are tried: between our choice and a daemon's bind, another may take one.
const PORT_TRIES: usize = 3;

/// A running server. Dropping it stops the daemons and removes the folder.
#[derive(Debug)]
pub struct S3Server {
    folder: tempfile::TempDir,
    gateway_port: u16,
    monitor_port: u16,
    /// Those that run, by name.
    daemons: BTreeMap<&'static str, Child>,
    /// Ends when its input closes, which it does with this process; see [`watchdog`].
    watchdog: Child,
}

impl S3Server {
    /// A server, or `None` where Ceph is not installed, which is said on stderr whatever the test
    /// runner hides.
    ///
    /// # Panics
    ///
    /// Where Ceph is not installed and `CI=true`; where it does not start.
    pub fn start_or_skip(test: &str) -> Option<S3Server> {
        let missing: Vec<&str> = PROGRAMS.into_iter().filter(|name| !is_on_path(name)).collect();
        if missing.is_empty() {
            return Some(S3Server::start().unwrap_or_else(|error| panic!("no S3 server: {error:#}")));
        }
        let line = format!(
            "SKIPPED {test}: no S3 server, {} missing; `cargo xtask test` installs it (Debian: radosgw ceph-mon \
             ceph-osd)\n",
            missing.join(", ")
        );
        assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must not skip: {line}");
        std::io::stderr().write_all(line.as_bytes()).unwrap_or_else(|error| panic!("{line}{error}"));
        None
    }

    /// Starts all three daemons and makes a user.
    fn start() -> anyhow::Result<S3Server> {
        let mut tries = 0;
        loop {
            tries += 1;
            match S3Server::start_on(free_port(), free_port()) {
                Err(error)
                    if tries < PORT_TRIES && format!("{error:#}").contains("Address already in use") =>
                {
                    eprintln!("a port was taken meanwhile, trying others");
                }
                started => return started,
            }
        }
    }

    fn start_on(gateway_port: u16, monitor_port: u16) -> anyhow::Result<S3Server> {
        let folder = tempfile::Builder::new().prefix("graft-s3-").tempdir()?;
        for name in ["mon", "osd", "rgw", "run", "log"] {
            fs::create_dir(folder.path().join(name))?;
        }
        let watchdog = watchdog(folder.path())?;
        let daemons = BTreeMap::new();
        let mut server = S3Server { folder, gateway_port, monitor_port, daemons, watchdog };
        server.make_cluster()?;
        server.start_gateway_or_say()?;
        server.tool(
            "radosgw-admin",
            &["user", "create", "--uid=test", "--display-name=test"],
            &["--access-key", ACCESS_KEY, "--secret-key", SECRET_KEY],
        )?;
        Ok(server)
    }

    fn make_cluster(&mut self) -> anyhow::Result<()> {
        let dir = self.folder.path().to_path_buf();
        let fsid = fs::read_to_string("/proc/sys/kernel/random/uuid")?.trim().to_owned();
        let osd_uuid = fs::read_to_string("/proc/sys/kernel/random/uuid")?.trim().to_owned();
        fs::write(dir.join("ceph.conf"), self.configuration(&fsid))?;
        let path = |name: &str| dir.join(name).display().to_string();
        let (keyring, monmap, uuid_file) = (path("keyring"), path("monmap"), path("osd.uuid"));
        fs::write(&uuid_file, &osd_uuid)?;
        let address = format!("[v2:127.0.0.1:{}]", self.monitor_port);
        plain("monmaptool", &["--create", "--addv", "a", &address, "--fsid", &fsid, &monmap])?;
        let keys: [(&str, &[&str]); 4] = [
            ("mon.", &["--cap", "mon", "allow *"]),
            (
                "client.admin",
                &["--cap", "mon", "allow *", "--cap", "osd", "allow *", "--cap", "mgr", "allow *"],
            ),
            ("osd.0", &["--cap", "mon", "allow profile osd", "--cap", "osd", "allow *"]),
            ("client.rgw.a", &["--cap", "mon", "allow *", "--cap", "osd", "allow *"]),
        ];
        for (at, (name, caps)) in keys.into_iter().enumerate() {
            let create: &[&str] = if at == 0 { &["--create-keyring"] } else { &[] };
            plain("ceph-authtool", &[create, &[&keyring, "--gen-key", "-n", name], caps].concat())?;
        }
        self.tool(
            "ceph-mon",
            &["--mkfs", "-i", "a", "--monmap", &monmap, "--keyring", &keyring],
            &["--no-mon-config"],
        )?;
        self.daemon(MONITOR, "ceph-mon", &["-i", "a"])?;
        for name in ["osd.0", "client.rgw.a"] {
            self.tool("ceph", &["auth", "add", name, "-i", &keyring], &[])?;
        }
        self.tool("ceph", &["osd", "new", &osd_uuid], &[])?;
        self.tool("ceph-osd", &["-i", "0", "--mkfs", "--osd-uuid", &osd_uuid], &[])?;
        self.tool("ceph", &["osd", "crush", "add", "osd.0", "1", "root=default", "host=localhost"], &[])?;
        self.daemon(OSD, "ceph-osd", &["-i", "0"])?;
        Ok(())
    }

    /// Where the gateway listens, for `AWS_ENDPOINT_URL`.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.gateway_port)
    }

    /// What a program needs in its environment to use this server.
    pub fn environment(&self) -> [(&'static str, String); 5] {
        [
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY.into()),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.into()),
            ("AWS_REGION", REGION.into()),
            ("AWS_ENDPOINT_URL", self.endpoint()),
            ("AWS_ALLOW_HTTP", "true".into()),
        ]
    }

    /// Makes a bucket: a signed `PUT` of its bare URL.
    ///
    /// # Panics
    ///
    /// If the server does not answer 200.
    pub async fn create_bucket(&self, bucket: &str) {
        // Its client wants TLS chosen even for plain HTTP. Elsewhere in this process it may be already.
        drop(rustls::crypto::ring::default_provider().install_default());
        let store = AmazonS3Builder::new()
            .with_endpoint(self.endpoint())
            .with_allow_http(true)
            .with_region(REGION)
            .with_access_key_id(ACCESS_KEY)
            .with_secret_access_key(SECRET_KEY)
            .with_bucket_name(bucket)
            .build()
            .unwrap_or_else(|error| panic!("bucket `{bucket}`: {error}"));
        let put = "PUT".parse().unwrap_or_else(|_| panic!("PUT is a method"));
        let signed =
            store.signed_url(put, &object_store::path::Path::default(), Duration::from_secs(60)).await;
        let url = signed.unwrap_or_else(|error| panic!("bucket `{bucket}`: {error}"));
        let query = url.query().unwrap_or_default();
        let (status, body) = self.request("PUT", &format!("{}?{query}", url.path()));
        assert_eq!(status, 200, "bucket `{bucket}`: {body}");
    }

    /// Kills the gateway outright, in the midst of whatever it does.
    ///
    /// # Panics
    ///
    /// If it does not run.
    pub fn kill_gateway(&mut self) {
        self.kill(GATEWAY);
    }

    /// Starts the gateway again, and waits until it answers.
    ///
    /// # Panics
    ///
    /// If it does not start.
    pub fn start_gateway(&mut self) {
        self.start_gateway_or_say().unwrap_or_else(|error| panic!("gateway: {error:#}"));
    }

    /// Kills all three daemons outright, as a power loss of the machine would.
    ///
    /// # Panics
    ///
    /// If one does not run.
    pub fn kill_all(&mut self) {
        for name in [GATEWAY, OSD, MONITOR] {
            self.kill(name);
        }
    }

    /// Starts all three again, and waits until the gateway answers.
    ///
    /// # Panics
    ///
    /// If one does not start.
    pub fn start_all(&mut self) {
        for (name, program, id) in [(MONITOR, "ceph-mon", "a"), (OSD, "ceph-osd", "0")] {
            self.daemon(name, program, &["-i", id]).unwrap_or_else(|error| panic!("{error:#}"));
        }
        self.start_gateway();
    }

    fn start_gateway_or_say(&mut self) -> anyhow::Result<()> {
        self.daemon(GATEWAY, "radosgw", &["-n", "client.rgw.a"])?;
        let begun = now();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.gateway_port));
        loop {
            if let Some(gateway) = self.daemons.get_mut(GATEWAY)
                && let Some(status) = gateway.try_wait()?
            {
                bail!("radosgw ended, {status}; its log ends: {}", self.log_end(GATEWAY));
            }
            if TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok() {
                return Ok(());
            }
            if begun.elapsed() > START_MAX {
                bail!("radosgw does not answer; its log ends: {}", self.log_end(GATEWAY));
            }
            pause();
        }
    }

    /// One request of HTTP/1.1; its status and body.
    fn request(&self, method: &str, path: &str) -> (u16, String) {
        let host = format!("127.0.0.1:{}", self.gateway_port);
        let answer = (|| -> anyhow::Result<(u16, String)> {
            let mut stream = TcpStream::connect(&host)?;
            stream.set_read_timeout(Some(START_MAX))?;
            let head = format!(
                "{method} {path} HTTP/1.1\r\nhost: {host}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            );
            stream.write_all(head.as_bytes())?;
            let text = std::io::read_to_string(stream)?;
            let (head, body) = text.split_once("\r\n\r\n").context("no HTTP answer")?;
            let status = head.split(' ').nth(1).context("no status")?.parse()?;
            Ok((status, body.to_owned()))
        })();
        answer.unwrap_or_else(|error| panic!("{method} {path}: {error:#}"))
    }

    /// Starts a daemon in the foreground. It writes its own log to the same file as its output.
    fn daemon(&mut self, name: &'static str, program: &str, args: &[&str]) -> anyhow::Result<()> {
        let dir = self.folder.path();
        let log =
            fs::OpenOptions::new().create(true).append(true).open(dir.join(format!("log/{name}.log")))?;
        let child = Command::new(program)
            .arg("-f")
            .arg("-c")
            .arg(dir.join("ceph.conf"))
            .args(args)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("{program} cannot be started"))?;
        fs::write(self.pid_file(name), child.id().to_string())?;
        self.daemons.insert(name, child);
        Ok(())
    }

    fn kill(&mut self, name: &str) {
        let mut child = self.daemons.remove(name).unwrap_or_else(|| panic!("{name} does not run"));
        child.kill().unwrap_or_else(|error| panic!("kill -9 of {name}: {error}"));
        child.wait().unwrap_or_else(|error| panic!("waiting for {name}: {error}"));
        // Its number may be another process's soon.
        fs::remove_file(self.pid_file(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    }

    fn pid_file(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("run/{name}.pid"))
    }

    /// Runs one of Ceph's tools to its end.
    fn tool(&self, program: &str, args: &[&str], more: &[&str]) -> anyhow::Result<()> {
        let configuration = self.folder.path().join("ceph.conf").display().to_string();
        let timeout = START_MAX.as_secs().to_string();
        let mut all = vec!["-c", &configuration];
        if program == "ceph" {
            all.extend(["--connect-timeout", &timeout]);
        }
        all.extend_from_slice(args);
        all.extend_from_slice(more);
        plain(program, &all).with_context(|| format!("the monitor's log ends: {}", self.log_end(MONITOR)))
    }

    fn log_end(&self, name: &str) -> String {
        let log = fs::read(self.folder.path().join(format!("log/{name}.log"))).unwrap_or_default();
        let end = log.len().saturating_sub(2_000);
        String::from_utf8_lossy(&log[end..]).into_owned()
    }

    /// The process ids of the daemons that run.
    pub fn pids(&self) -> Vec<u32> {
        self.daemons.values().map(Child::id).collect()
    }

    fn configuration(&self, fsid: &str) -> String {
        let dir = self.folder.path().display();
        let (gateway, monitor) = (self.gateway_port, self.monitor_port);
        format!(
            "\
[global]
fsid = {fsid}
mon initial members = a
mon host = v2:127.0.0.1:{monitor}
ms bind msgr1 = false
public addr = 127.0.0.1
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
keyring = {dir}/keyring
mon warn on insecure global id reclaim allowed = false
run dir = {dir}/run
admin socket = {dir}/run/$name.asok
log file = {dir}/log/$name.log
crash dir = {dir}/log
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon warn on pool no redundancy = false
mon pg warn min per osd = 0
mon data avail crit = 1
mon osd min up ratio = 0
[mon.a]
mon data = {dir}/mon
mon addr = 127.0.0.1:{monitor}
paxos propose interval = 0.05
paxos min wait = 0.01
mon tick interval = 1
mon osd max creating pgs = 1024
[osd.0]
osd data = {dir}/osd
osd objectstore = bluestore
bluestore block create = true
bluestore block size = 10737418240
osd max object name len = 256
osd memory target = 1073741824
[client.rgw.a]
rgw data = {dir}/rgw
rgw frontends = beast endpoint=127.0.0.1:{gateway} tcp_nodelay=1
rgw thread pool size = 64
rgw enable usage log = false
rgw run sync thread = false
rgw dns name = localhost
"
        )
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        // No panics here: the test may be panicking already.
        for (name, child) in &mut self.daemons {
            if let Err(error) = child.kill().and_then(|()| child.wait()) {
                eprintln!("{name} was not stopped: {error}");
            }
        }
        for name in self.daemons.keys() {
            if let Err(error) = fs::remove_file(self.pid_file(name)) {
                eprintln!("{name}: {error}");
            }
        }
        drop(self.watchdog.stdin.take());
        if let Err(error) = self.watchdog.wait() {
            eprintln!("the watchdog: {error}");
        }
    }
}

/// A shell that waits until its input closes, which the end of this process does however it comes,
/// and then kills what has a pid file in `dir` and removes `dir`.
fn watchdog(dir: &Path) -> anyhow::Result<Child> {
    let script = "trap '' INT TERM; cat >/dev/null; for f in \"$0\"/run/*.pid; do
        test -f \"$f\" && kill -9 \"$(cat \"$f\")\"; done; rm -rf \"$0\"";
    let child = Command::new("sh").args(["-c", script]).arg(dir).stdin(Stdio::piped()).spawn();
    child.context("sh cannot be started")
}

/// Runs a program to its end; on failure its output is in the error.
fn plain(program: &str, args: &[&str]) -> anyhow::Result<()> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("{program} cannot be started"))?;
    if !output.status.success() {
        bail!(
            "{program} {}: {}: {}{}",
            args.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

fn is_on_path(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(name).is_file())
}

#[allow(clippy::disallowed_methods, reason = "a driver: it waits for daemons by the real clock")]
fn now() -> Instant {
    Instant::now()
}

/// A daemon's port has no event to wait for.
#[allow(clippy::disallowed_methods, reason = "a driver: between two tries to connect")]
fn pause() {
    std::thread::sleep(Duration::from_millis(50));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a killed test process leaves behind: a pid file, and a closed pipe.
    #[test]
    fn the_watchdog_kills_what_has_a_pid_file_once_its_input_closes() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("run")).unwrap();
        let mut guard = watchdog(dir.path()).unwrap();
        let mut daemon = Command::new("sleep").arg("600").spawn().unwrap();
        fs::write(dir.path().join("run/a b.pid"), daemon.id().to_string()).unwrap();
        assert!(daemon.try_wait().unwrap().is_none());
        drop(guard.stdin.take());
        assert!(guard.wait().unwrap().success());
        let status = daemon.wait().unwrap();
        assert!(!status.success() && status.code().is_none(), "killed: {status}");
        assert!(!dir.path().exists());
    }
}
