//! `quarry-manager`: see [`quarry_manager`].

use clap::Parser;
use quarry_manager::args::Args;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    quarry_process::init_logs(args.log_format, &args.log)?;
    quarry_manager::run::run(args).await
}
