//! The command `bed`; as the first process of a node, that node.

use std::process::ExitCode;

fn main() -> ExitCode {
    quarry_bed::run_if_node().unwrap_or_else(quarry_bed::args::run)
}
