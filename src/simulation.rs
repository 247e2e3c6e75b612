//! `projectionist simulate`: reads the files that the command line names, and prints and writes what comes of it.

use std::{
    fs::File,
    io::{BufReader, ErrorKind, Write as _},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, ensure};

use crate::{
    cli::{CheckpointRows, OutputFormat, SimulateArgs},
    simulate::{
        Checkpoints, InvalidInput, Options, Trace, WorkerKind, read_autoscaler, read_projection, report, simulate, svg,
        to_json,
    },
};

/// How old the oldest event of a backlog is, where no option gives it.
const BACKLOG_AGE: Duration = Duration::from_secs(3_600);
/// How wide charts are, in columns, where no option gives it.
const WIDTH: u16 = 100;

/// Prints. A reader that has seen enough (`| head`) is no failure.
///
/// # Errors
/// When standard output cannot be written.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut output = std::io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("writing to standard output"),
    }
}

/// Simulates what the command line says.
///
/// # Errors
/// With the file or the option, what is wrong and what to do.
pub fn run(args: &SimulateArgs) -> anyhow::Result<()> {
    ensure!(
        args.width.is_none() || args.output == OutputFormat::Table,
        "--width says nothing with --output json: leave one of them out"
    );
    let projection = read_projection(&text_of(&args.projection)?).with_context(|| named(&args.projection))?;
    let autoscaler = match &args.hpa {
        None => None,
        Some(path) => Some(read_autoscaler(&text_of(path)?).with_context(|| named(path))?),
    };
    let file = File::open(&args.trace).with_context(|| format!("{} cannot be read", named(&args.trace)))?;
    let trace = Trace::from_reader(BufReader::new(file)).with_context(|| named(&args.trace))?;
    let title = format!("{} on {}", projection.metadata.name.as_deref().unwrap_or_default(), named(&args.trace));
    let run = simulate(projection, autoscaler.as_ref(), trace, &options(args)).map_err(|error| match &error {
        InvalidInput::Option { .. } => anyhow::Error::from(error),
        InvalidInput::Autoscaler(_) => {
            anyhow::Error::from(error).context(args.hpa.as_deref().map(named).unwrap_or_default())
        }
        _ => anyhow::Error::from(error).context(named(&args.projection)),
    })?;
    if let Some(path) = &args.svg {
        std::fs::write(path, svg(&run, &title)).with_context(|| format!("{} cannot be written", named(path)))?;
    }
    match args.output {
        OutputFormat::Table => print(&report(&run, &title, args.width.unwrap_or(WIDTH).into())),
        OutputFormat::Json => print(&format!("{}\n", to_json(&run))),
    }
}

fn options(args: &SimulateArgs) -> Options {
    Options {
        kubernetes: args.kubernetes,
        worker_rate: args.worker_rate,
        learnt_rate: args.learnt_rate,
        start_up: args.start_up.0,
        kind: WorkerKind {
            commits: args.commit_every,
            checkpoints: match args.checkpoint {
                CheckpointRows::Builtin => Checkpoints::Following,
                CheckpointRows::One => Checkpoints::One,
                CheckpointRows::Shard => Checkpoints::Shard,
                CheckpointRows::ShardUnknown => Checkpoints::ShardUnknown,
            },
            slowest: args.slow_worker,
        },
        workers: args.workers,
        shards: args.shards,
        hot_shard: args.hot_shard,
        backlog: args.backlog.unwrap_or(0),
        backlog_age: args.backlog_age.map_or(BACKLOG_AGE, |age| age.0),
        sampling: args.sampling.map(|sampling| sampling.0),
        sync_period: args.sync_period.0,
        phase: args.phase.0,
        scale_out: args.scale_out,
    }
}

fn named(path: &Path) -> String {
    path.display().to_string()
}

/// The text of a small file.
fn text_of(path: &Path) -> anyhow::Result<String> {
    let bytes = std::fs::read(path).with_context(|| format!("{} cannot be read", named(path)))?;
    ensure!(
        !bytes.starts_with(&[0xff, 0xfe]) && !bytes.starts_with(&[0xfe, 0xff]),
        "{} is UTF-16: save it as UTF-8",
        named(path)
    );
    String::from_utf8(bytes).with_context(|| format!("{} is no text in UTF-8", named(path)))
}
