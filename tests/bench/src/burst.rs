//! Five hundred pods that arrive together, over three nodes with room for exactly these: several classes, sizes and groups,
//! pods with three claims and with generic ephemeral volumes; fifty are deleted and made again, and every extender is killed
//! meanwhile. It fails where one is not placed, or a claim is given back.

use anyhow::Result;
use quarry_e2e::bed::Bed;
use quarry_e2e::burst::{Burst, DEFAULT_SCHEDULER, Meanwhile, strictly};
use quarry_e2e::test::Test;

use crate::figure::{Figure, Goal};

/// The figures.
///
/// # Errors
/// The cluster did not come up, or something was not as it has to be.
pub async fn figures(figures: &mut Vec<Figure>) -> Result<()> {
    let test = Test::new(Bed::up().await?, "burst");
    let burst = Burst {
        room: vec![42, 42, 41],
        again: 50,
        schedulers: vec![DEFAULT_SCHEDULER],
        meanwhile: Meanwhile::ExtenderRestarts,
        // What kubelet would need to start so many on this machine is not what is measured.
        run: false,
    };
    let result = async {
        test.begin().await?;
        strictly(&test, &burst).await
    }
    .await;
    let cleaned = test.end().await;
    let filled = result?;
    cleaned?;
    let seconds = filled.took.as_secs_f64();
    let (pods, claims) = (filled.pods as f64, filled.claims as f64);
    figures.extend([
        Figure::new("pods placed, of 500, all groups full to the last extent", pods, "").goal(Goal::AtLeast(500.0)),
        Figure::new("their claims, all bound", claims, ""),
        Figure::new(
            "claims given to a node, those of pods that were deleted included",
            filled.selections as f64,
            "",
        ),
        Figure::new("from the first pod made until the last claim was bound", seconds, "s"),
        Figure::new("claims bound a second", claims / seconds, "claims/s"),
    ]);
    Ok(())
}
