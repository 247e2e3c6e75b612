//! `test-cluster`: the test bed for people. Parses, calls the library, prints.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use test_cluster::binaries::Binaries;
use test_cluster::instance::Lock;
use test_cluster::{Cluster, ClusterOptions, Instance, Postgres, elasticsearch, kafka, packages, supervise, teardown};

/// A real one-node Kubernetes on this machine, without containers engines, registries or hosted clusters
#[derive(Debug, Parser)]
#[command(name = "test-cluster", version)]
struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Bring a cluster up and leave it up
    Up {
        #[command(flatten)]
        which: Which,
        /// Where to keep logs and kubeconfig [default: target/test-cluster/NAME]
        #[arg(long)]
        dir: Option<PathBuf>,
        #[command(flatten)]
        options: ClusterOptions,
    },
    /// Take a cluster down, running or left over, and leave nothing but its logs
    Down {
        #[command(flatten)]
        which: Which,
    },
    /// Install the Debian packages that are missing
    Packages,
    /// Install and build all that a cluster needs without starting anything
    Prepare,
    /// Install and download all servers that tests measure without starting anything
    Servers,
    /// Print the path of one of the cluster's programs, built first if this machine lacks it
    Program {
        /// Such as helm or kubectl
        name: String,
    },
    /// Run kubectl against a cluster
    Kubectl(Passed),
    /// Run helm against a cluster
    Helm(Passed),
    /// Run any program inside the cluster's network, with kubectl and helm in PATH; a shell if none is given
    Shell(Passed),
    /// Make the images of a docker-archive file known to the node
    Import {
        #[command(flatten)]
        which: Which,
        /// The file
        archive: PathBuf,
    },
    /// Run a PostgreSQL server on loopback for as long as this command runs, and print its URL
    Postgres,
    /// Bring a cluster up and keep it for as long as this command runs
    Hold {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        options: ClusterOptions,
    },
    /// Own an instance: bring it up, report, take it down when told to (used by `up` and by tests)
    #[command(hide = true)]
    Supervise {
        #[command(flatten)]
        which: Which,
        #[arg(long)]
        dir: Option<PathBuf>,
        #[command(flatten)]
        options: ClusterOptions,
        #[arg(long)]
        until_stdin_closes: bool,
    },
}

#[derive(Debug, Args)]
struct Which {
    /// The cluster's name; clusters of different names share nothing
    #[arg(long, default_value = "default", env = "PROJECTIONIST_CLUSTER")]
    name: String,
}

#[derive(Debug, Args)]
struct Passed {
    #[command(flatten)]
    which: Which,
    /// Passed on as it is
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<OsString>,
}

fn main() -> ExitCode {
    match run(Arguments::parse().action) {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "test-cluster: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(action: Action) -> Result<ExitCode> {
    let started = Instant::now();
    match action {
        Action::Up { which, dir, options } => {
            let instance = Instance::new(&which.name, dir)?;
            if is_up(&which.name) {
                let _ = writeln!(std::io::stdout(), "cluster {:?} was up already, as it was started", which.name);
                return Ok(ExitCode::SUCCESS);
            }
            Cluster::start_detached(&instance, &options)?;
            announce(&instance, started);
        }
        Action::Hold { which, options } => {
            let cluster = Cluster::start_named(&Instance::new(&which.name, None)?, &options)?;
            announce(cluster.instance(), started);
            loop {
                std::thread::park();
            }
        }
        Action::Postgres => {
            let server = Postgres::on_loopback()?;
            let _ = writeln!(std::io::stdout(), "{}", server.url("postgres"));
            loop {
                std::thread::park();
            }
        }
        Action::Down { which } => {
            teardown::down(&Instance::new(&which.name, None)?)?;
            let _ = writeln!(
                std::io::stdout(),
                "cluster {:?} is down after {:.1} s",
                which.name,
                started.elapsed().as_secs_f64()
            );
        }
        Action::Packages => packages::ensure()?,
        Action::Prepare => {
            packages::ensure()?;
            Binaries::ensure()?;
        }
        Action::Servers => {
            packages::ensure_servers()?;
            kafka::ensure()?;
            elasticsearch::ensure()?;
        }
        Action::Program { name } => {
            let path = Binaries::ensure()?.program(&name);
            anyhow::ensure!(path.is_absolute(), "the cluster has no program {name:?}");
            let _ = writeln!(std::io::stdout(), "{}", path.display());
        }
        Action::Kubectl(passed) => return pass("kubectl", &passed),
        Action::Helm(passed) => return pass("helm", &passed),
        Action::Shell(Passed { which, mut words }) => {
            let program = if words.is_empty() {
                std::env::var("SHELL").unwrap_or_else(|_| "sh".to_owned())
            } else {
                words.remove(0).into_string().ok().context("the program's name is not UTF-8")?
            };
            return pass(&program, &Passed { which, words });
        }
        Action::Import { which, archive } => Cluster::connect(&which.name)?.import_image(&archive)?,
        Action::Supervise { which, dir, options, until_stdin_closes } => {
            supervise::supervise(&Instance::new(&which.name, dir)?, &options, until_stdin_closes)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether a cluster of that name answers. One that is owned and does not is on its way up or down.
fn is_up(name: &str) -> bool {
    let Ok(cluster) = Cluster::connect(name) else { return false };
    Lock::owner(cluster.instance()).is_some() && cluster.kubectl(&["get", "--raw", "/readyz"]).is_ok()
}

fn announce(instance: &Instance, started: Instant) {
    let name = instance.name();
    let program = std::env::current_exe().unwrap_or_else(|_| "test-cluster".into());
    let run = format!("{} ", program.display());
    let _ = writeln!(
        std::io::stdout(),
        "cluster {name:?} is up after {:.1} s\n\
         kubeconfig: {} (its API server answers inside the cluster's network only)\n\
         logs:       {}\n\
         use it:     {run}kubectl --name {name} get pods -A\n\
         \x20           {run}shell --name {name}\n\
         tests:      PROJECTIONIST_CLUSTER={name} cargo test\n\
         take down:  {run}down --name {name}",
        started.elapsed().as_secs_f64(),
        instance.kubeconfig().display(),
        instance.logs().display(),
    );
}

fn pass(program: &str, passed: &Passed) -> Result<ExitCode> {
    let cluster = Cluster::connect(&passed.which.name)?;
    let status = cluster.command(program).args(&passed.words).status().with_context(|| format!("running {program}"))?;
    Ok(ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1)))
}
