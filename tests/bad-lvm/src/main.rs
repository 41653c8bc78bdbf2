//! Stands in front of the `lvm` program: does what the rules beside it say, and else what LVM does.

fn main() -> anyhow::Result<std::process::ExitCode> {
    quarry_bad_lvm::run()
}
