//! A thousand random events; the seed is printed, and `SEED` repeats a run.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod plugin;

#[tokio::test]
async fn no_device_is_given_twice_and_none_is_lost() {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        now.as_nanos() as u64 | 1
    });
    println!("SEED={seed}");
    let outcome = plugin::random::run(seed).await;
    println!("{} events: {outcome:?}", plugin::random::EVENTS);
    assert_eq!((outcome.twice, outcome.lost), (0, 0), "SEED={seed}");
    assert!(outcome.allocated > 50 && outcome.refused > 20, "{outcome:?}");
}
