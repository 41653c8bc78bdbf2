//! Quarry's scheduler extender.

use clap::Parser;

fn main() -> anyhow::Result<()> {
    quarry_extender::args::Args::parse().run()
}
