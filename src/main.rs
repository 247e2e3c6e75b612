//! The `projectionist` program: parses the command line and runs what it says.

use std::{io::Write as _, process::ExitCode};

use clap::Parser as _;
use projectionist::{app, cli::Cli};

fn main() -> ExitCode {
    // Before anything else: rustls has no default when it is built with explicit features only.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        eprintln!("projectionist: a TLS provider was installed before main");
        return ExitCode::FAILURE;
    }
    match app::run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            // Where standard error cannot be written, nothing can be done about it.
            let _ = writeln!(std::io::stderr(), "projectionist: {error:#}");
            ExitCode::FAILURE
        }
    }
}
