//! `graft`, the one binary a person types.
//!
//! Results go to stdout; everything else (progress, errors, logs) to stderr. Exit codes: 0 done, 1 an
//! error, 2 a mutation that was rejected. The shapes of `--json` are in `docs/cli.md`.

use std::process::ExitCode;

use clap::Parser as _;

/// Prints a line to stderr, as `eprintln!` does; nobody there to read it is no reason to stop.
macro_rules! say {
    ($($text:tt)*) => { $crate::output::say(format_args!($($text)*)) };
}

mod arenas;
mod args;
mod backup;
mod codegen;
mod compact;
mod dev;
mod export;
mod files;
mod gc;
mod http;
mod hydrate;
mod import;
mod live;
mod moment;
mod new;
mod output;
mod progress;
mod serve;
mod sql;
mod verify;
mod volume;

use args::{Args, Command};

/// How a command that did not fail ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It did what was asked.
    Done,
    /// A mutation was rejected, and the reason is printed.
    Rejected,
    /// A volume or its name is damaged, and what is wrong is printed.
    Damaged,
}

fn main() -> ExitCode {
    arenas::bound();
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // Clap's own code for bad usage is 2, which here means a rejected mutation.
            let code = if error.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
            return if error.print().is_ok() { code } else { ExitCode::FAILURE };
        }
    };
    if let Err(error) = output::start_logging(args.log.as_deref(), matches!(args.command, Command::Serve(_)))
    {
        say!("error: {}", output::reason(&error));
        return ExitCode::FAILURE;
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            say!("error: no threads to run on: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(args.command)) {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Rejected) => ExitCode::from(2),
        Ok(Outcome::Damaged) => ExitCode::FAILURE,
        // The reader of our output has seen enough (`graft … | head`).
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            say!("error: {}", output::reason(&error));
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> anyhow::Result<Outcome> {
    match command {
        Command::Serve(args) => serve::run(args).await,
        Command::Deploy(args) => http::deploy(args).await,
        Command::Mutate(args) => live::mutate(args).await,
        Command::Subscribe(args) => live::subscribe(args).await,
        Command::Query(args) => live::query(args).await,
        Command::Sql(args) => sql::run(args).await,
        Command::Import(args) => import::run(args).await,
        Command::Export(args) => export::run(args).await,
        Command::Backup(args) => backup::run(args).await,
        Command::Volume(args) => volume::run(args).await,
        Command::Codegen(args) => codegen::run(args.language).await,
        Command::New(args) => new::run(args),
        Command::Dev(args) => dev::run(args).await,
    }
}
