use quarry_fake_api::FakeApi;

use super::*;

const LEASES: &str = "leases";

fn api() -> FakeApi {
    FakeApi::new(|_| {})
}

fn candidate(api: &FakeApi, place: &str) -> (Candidate, Leadership) {
    Candidate::new(api.client(), "quarry-system", "clean-up", place, Times::default())
}

fn holder(api: &FakeApi) -> String {
    let lease = api.objects(|objects| objects.get(LEASES, "clean-up")).expect("a Lease");
    let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
    holder.split('_').next().unwrap_or_default().to_owned()
}

async fn later(seconds: u64) {
    tokio::time::advance(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn the_first_leads_and_the_second_waits_until_it_is_silent() {
    let api = api();
    let ((mut one, leads_one), (mut two, leads_two)) = (candidate(&api, "one"), candidate(&api, "two"));
    one.round().await.expect("answered");
    for _ in 0..10 {
        two.round().await.expect("answered");
        one.round().await.expect("answered");
        assert!(leads_one.holds() && !leads_two.holds());
        later(5).await;
    }
    // It falls silent. It knows that it leads no more before anybody else may.
    two.round().await.expect("answered");
    later(11).await;
    two.round().await.expect("answered");
    assert!(!leads_one.holds() && !leads_two.holds());
    later(4).await;
    two.round().await.expect("answered");
    assert!(leads_two.holds());
    assert_eq!(holder(&api), "two");
    // It comes back, and has to wait.
    one.round().await.expect("answered");
    assert!(!leads_one.holds());
    let lease = api.objects(|objects| objects.get(LEASES, "clean-up")).expect("a Lease");
    assert_eq!(lease["spec"]["leaseTransitions"], 1);
}

#[tokio::test(start_paused = true)]
async fn times_of_other_machines_do_not_matter() {
    for time in ["1970-01-01T00:00:00.000000Z", "2199-01-01T00:00:00.000000Z"] {
        let api = api();
        let spec = json!({"holderIdentity": "other", "leaseDurationSeconds": 15, "renewTime": time});
        api.objects(|objects| {
            objects.put(
                LEASES,
                json!({"metadata": {"name": "clean-up", "namespace": "quarry-system"}, "spec": spec}),
            );
        });
        let (mut one, leads) = candidate(&api, "one");
        one.round().await.expect("answered");
        later(14).await;
        one.round().await.expect("answered");
        assert!(!leads.holds(), "{time}");
        later(1).await;
        one.round().await.expect("answered");
        assert!(leads.holds(), "{time}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_says_longer_is_believed_and_one_that_says_shorter_is_not() {
    for (seconds, expected) in [(60, 60), (1, 15), (-5, 15)] {
        let mut election = candidate(&api(), "one").0.election;
        let lease: Lease = serde_json::from_value(json!({
            "metadata": {"name": "clean-up", "resourceVersion": "7"},
            "spec": {"holderIdentity": "other", "leaseDurationSeconds": seconds},
        }))
        .expect("a Lease");
        let now = Instant::now();
        assert_eq!(election.decide(Some(&lease), now), Move::Wait);
        let early = now + Duration::from_secs(expected - 1);
        assert_eq!(election.decide(Some(&lease), early), Move::Wait, "{seconds}");
        let taken = election.decide(Some(&lease), now + Duration::from_secs(expected));
        assert!(matches!(taken, Move::Write { transitions: 1, .. }), "{seconds}");
    }
}

#[tokio::test(start_paused = true)]
async fn of_two_who_reach_for_it_at_once_one_gets_it() {
    let api = api();
    let ((mut one, leads_one), (mut two, leads_two)) = (candidate(&api, "one"), candidate(&api, "two"));
    one.round().await.expect("answered");
    let (mut three, leads_three) = candidate(&api, "three");
    two.round().await.expect("answered");
    three.round().await.expect("answered");
    later(15).await;
    // Between the look and the write of one, the other writes.
    let taken = json!({"spec": {"holderIdentity": "three_x"}});
    api.before_next("patch", LEASES, move |objects| {
        objects.change(LEASES, "clean-up", &taken)
    });
    two.round().await.expect("a conflict is no error");
    assert!(!leads_one.holds() && !leads_two.holds() && !leads_three.holds());
    assert_eq!(holder(&api), "three");
}

#[tokio::test(start_paused = true)]
async fn whose_renewal_got_no_answer_stops_in_time() {
    let api = api();
    let (mut one, leads) = candidate(&api, "one");
    one.round().await.expect("answered");
    later(6).await;
    api.lose_next("patch", LEASES);
    one.round().await.expect_err("lost");
    assert!(leads.holds(), "the former renewal still counts");
    later(4).await;
    assert!(!leads.holds(), "and the one that was lost does not");
    one.round().await.expect("its own");
    assert!(leads.holds());
}

#[tokio::test(start_paused = true)]
async fn who_ends_lets_go_at_once() {
    let api = api();
    let (one, mut leads) = candidate(&api, "one");
    let shutdown = Shutdown::new();
    let running = tokio::spawn(one.run(shutdown.clone()));
    leads.gained().await;
    shutdown.ask();
    running.await.expect("ended");
    assert!(!leads.holds());
    let (mut two, leads_two) = candidate(&api, "two");
    two.round().await.expect("answered");
    assert!(leads_two.holds());
}
