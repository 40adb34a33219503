use super::*;

#[test]
fn ages_are_short() {
    let now: Timestamp = "2026-11-24T12:00:00Z".parse().unwrap();
    for (at, text) in [
        ("2026-11-24T11:59:48Z", "12s"),
        ("2026-11-24T11:55:00Z", "5m"),
        ("2026-11-24T09:55:00Z", "2h5m"),
        ("2026-11-20T11:00:00Z", "4d1h"),
        ("2026-11-25T00:00:00Z", "0s"),
    ] {
        assert_eq!(ago(now, at.parse().unwrap()), text);
    }
}
