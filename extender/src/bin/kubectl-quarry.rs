//! `kubectl quarry`: why a pod is not placed, and how Quarry stands.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match quarry_extender::plugin::args::Args::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
