//! A system in a process of its own, and the orders that it is given.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::systems::Place;

/// An order that takes longer is given up, and the system with it.
const ORDER_MAX: Duration = Duration::from_secs(180);

/// What an order was answered.
#[derive(Debug, Deserialize)]
pub struct Answer {
    /// How long it took there.
    pub ms: f64,
    /// What `memory` counts.
    pub number: u64,
    /// What `import` tells later processes.
    pub note: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Answer(Answer),
    Error { error: String },
}

/// A running process. Dropping it kills it.
pub struct Engine {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    log: PathBuf,
}

impl Engine {
    /// Starts `program NAME PLACE`, with what it prints to stderr in `PLACE/stderr.log`.
    pub fn start(
        program: &Path,
        name: &str,
        place: &Place,
        variables: &[(String, String)],
    ) -> anyhow::Result<Engine> {
        let log = place.dir.join("stderr.log");
        let mut command = Command::new(program);
        if program == std::env::current_exe()? {
            command.arg("engine");
        }
        command.args([name, &serde_json::to_string(place)?]).current_dir(&place.dir);
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        // Certificates of this machine's choosing, which some clients refuse to take; the store has no TLS.
        command.env_remove("AWS_CA_BUNDLE");
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&log)?)
            .kill_on_drop(true);
        let mut child = command.spawn().with_context(|| format!("{} does not start", program.display()))?;
        let input = child.stdin.take().context("no stdin")?;
        let output = BufReader::new(child.stdout.take().context("no stdout")?).lines();
        Ok(Engine { child, input, output, log })
    }

    /// Gives an order and waits for the answer.
    pub async fn order(&mut self, order: &str) -> anyhow::Result<Answer> {
        self.input.write_all(format!("{order}\n").as_bytes()).await?;
        let answered = async {
            // A foreign library may print where it likes; an answer is an object.
            loop {
                match self.output.next_line().await? {
                    Some(line) if !line.starts_with('{') => {}
                    line => return anyhow::Ok(line),
                }
            }
        };
        let line = tokio::time::timeout(ORDER_MAX, answered).await;
        let line = line.map_err(|_| anyhow::anyhow!("`{order}` has no answer after {ORDER_MAX:?}"))??;
        let Some(line) = line else {
            bail!("it ended during `{order}`: {}{}", self.child.wait().await?, self.printed());
        };
        match serde_json::from_str(&line) {
            Ok(Line::Answer(answer)) => Ok(answer),
            Ok(Line::Error { error }) => bail!("{error}{}", self.printed()),
            Err(_) => bail!("it answered `{order}` with {line:?}"),
        }
    }

    /// The last line of what it printed to stderr.
    fn printed(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        text.lines().next_back().map_or_else(String::new, |line| format!("; it says: {line}"))
    }

    /// Ends its input and waits until it has ended.
    pub async fn end(self) -> anyhow::Result<()> {
        let Engine { mut child, input, output: _, log: _ } = self;
        drop(input);
        let ended = tokio::time::timeout(ORDER_MAX, child.wait()).await;
        ended.map_err(|_| anyhow::anyhow!("it does not end"))??;
        Ok(())
    }
}
