//! `make bench`.

fn main() -> anyhow::Result<()> {
    quarry_bench::run()
}
