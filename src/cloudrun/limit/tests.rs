use super::bucket::{BELIEVED, LONGEST_PAUSE};
use super::*;
use crate::{
    cloudrun::{CloudRun, Listing, Method, Observer},
    fault::FaultClass,
    iam::Policy,
};

struct Quiet;
impl Observer for Quiet {
    fn called(&self, _: Method, _: &'static str, _: Duration) {}
}
/// Answers with what it is told, and notes when it was called.
#[derive(Default)]
struct Script {
    calls: Arc<Mutex<Vec<Instant>>>,
    answers: Mutex<Vec<Fault>>,
}
impl CloudRun for Script {
    async fn read_policy(&self, _: &RunService) -> Result<Policy, Fault> {
        Ok(Policy::default())
    }
    async fn write_policy(&self, _: &RunService, _: &Policy) -> Result<Policy, Fault> {
        self.calls.lock().unwrap().push(Instant::now());
        self.answers
            .lock()
            .unwrap()
            .pop()
            .map_or(Ok(Policy::default()), Err)
    }
    async fn list_page(&self, _: &str, _: &Scope, _: &str) -> Result<(Listing, String), Fault> {
        Ok(Default::default())
    }
}
fn service(project: &str) -> RunService {
    RunService::new(project, "europe-west1", "web")
}
fn place(project: &str) -> Place {
    Place::of(&service(project))
}
fn budgets(writes_per_minute: u32) -> Arc<Budgets> {
    Budgets::new(Budget {
        writes_per_minute,
        ..Budget::default()
    })
}
type Calls = Arc<Mutex<Vec<Instant>>>;
fn limited(script: Script, writes: u32) -> (Arc<Limited<Script>>, Calls) {
    let calls = script.calls.clone();
    let budget = Budget {
        writes_per_minute: writes,
        ..Budget::default()
    };
    (
        Arc::new(Limited::new(script, budget, Arc::new(Quiet))),
        calls,
    )
}

#[tokio::test(start_paused = true)]
async fn no_minute_sees_more_writes_than_the_budget() {
    for budget in [1, 4, 15, 30, 60] {
        let (limited, calls) = limited(Script::default(), budget);
        let work = (0..90).map(|_| {
            let limited = limited.clone();
            async move {
                limited
                    .write_policy(&service("p"), &Policy::default())
                    .await
            }
        });
        futures::future::join_all(work).await;
        let times: Vec<_> = calls.lock().unwrap().clone();
        assert_eq!(times.len(), 90);
        for (i, start) in times.iter().enumerate() {
            let within = times[i..]
                .iter()
                .take_while(|t| **t - *start < Duration::from_secs(60))
                .count();
            assert!(
                within <= budget as usize,
                "{within} writes in a minute of {budget}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_that_is_held_for_long_does_not_let_more_through() {
    let budgets = budgets(6);
    let mut held = budgets.reserve(&place("p"), Needs::WRITE).unwrap();
    tokio::time::advance(Duration::from_secs(600)).await;
    let mut spent = 0;
    while let Ok(mut tokens) = budgets.reserve(&place("p"), Needs::WRITE) {
        tokens.write().unwrap().spend();
        spent += 1;
    }
    held.write().unwrap().spend();
    assert_eq!(spent + 1, 2, "the burst of a budget of six is two");
}

#[tokio::test(start_paused = true)]
async fn what_is_not_used_goes_back() {
    let budgets = budgets(3);
    assert!(
        budgets.reserve(&place("p"), Needs::WRITE).is_ok(),
        "and dropped"
    );
    let kept = budgets.reserve(&place("p"), Needs::WRITE).unwrap();
    assert!(budgets.reserve(&place("p"), Needs::WRITE).is_err());
    drop(kept);
    assert!(budgets.reserve(&place("p"), Needs::WRITE).is_ok());
}

#[tokio::test(start_paused = true)]
async fn retry_after_stops_one_place_and_not_the_others_and_is_not_believed_for_ever() {
    let fault = |seconds| {
        let mut fault = Fault::new(FaultClass::QuotaExceeded, "slow down");
        fault.retry_after = Some(Duration::from_secs(seconds));
        fault
    };
    let script = Script {
        answers: Mutex::new(vec![fault(1_000_000), fault(30)]),
        ..Script::default()
    };
    let (limited, _) = limited(script, 30);
    assert!(
        limited
            .write_policy(&service("p"), &Policy::default())
            .await
            .is_err()
    );
    let start = Instant::now();
    limited.read_policy(&service("p")).await.unwrap();
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "reads are not writes"
    );
    assert!(
        limited
            .write_policy(&service("p"), &Policy::default())
            .await
            .is_err()
    );
    assert!((30..40).contains(&start.elapsed().as_secs()));
    let start = Instant::now();
    limited
        .write_policy(&service("p"), &Policy::default())
        .await
        .unwrap();
    assert!(start.elapsed() <= LONGEST_PAUSE + Duration::from_secs(60));
}

#[tokio::test(start_paused = true)]
async fn half_of_a_limit_that_google_names_is_used_from_then_on() {
    let budgets = budgets(30);
    let mut fault = Fault::new(FaultClass::QuotaExceeded, "slow down");
    fault.quota_limit = Some(20);
    budgets.pushed_back(&place("p"), Kind::Write, &fault);
    assert_eq!(budgets.limits(&place("p")).writes_per_minute, 10);
    fault.quota_limit = Some(600);
    budgets.pushed_back(&place("p"), Kind::Write, &fault);
    assert_eq!(
        budgets.limits(&place("p")).writes_per_minute,
        10,
        "more than we use is no news"
    );
    assert_eq!(budgets.limits(&place("q")).writes_per_minute, 30);
    tokio::time::advance(BELIEVED + Duration::from_secs(1)).await;
    drop(budgets.reserve(&place("p"), Needs::WRITE));
    assert_eq!(
        budgets.limits(&place("p")).writes_per_minute,
        30,
        "a quota can be raised"
    );
}

#[tokio::test(start_paused = true)]
async fn the_tightest_place_is_known_by_budget_limit_and_use() {
    let script = Script::default();
    let (limited, _) = limited(script, 30);
    let budgets = limited.budgets().clone();
    let write = async |project: &str| {
        let policy = Policy::default();
        let written = limited.write_policy(&service(project), &policy).await;
        written.is_ok()
    };
    for _ in 0..6 {
        assert!(write("busy").await);
    }
    assert!(write("idle").await);
    let tightest = budgets.tightest(Kind::Write);
    assert_eq!((tightest.budget, tightest.limit), (30, None));
    assert!((tightest.used - 0.2).abs() < 1e-9, "{}", tightest.used);
    assert_eq!(budgets.tightest(Kind::Read).used, 0.0);
    let fault = Fault {
        quota_limit: Some(10),
        ..Fault::new(FaultClass::QuotaExceeded, "quota")
    };
    budgets.pushed_back(&place("idle"), Kind::Write, &fault);
    let tightest = budgets.tightest(Kind::Write);
    assert_eq!((tightest.budget, tightest.limit), (5, Some(10)));
    // Half of the minute before counts in the middle of the next, and none after it.
    tokio::time::advance(Duration::from_secs(90)).await;
    assert!((budgets.tightest(Kind::Write).used - 0.1).abs() < 1e-9);
    tokio::time::advance(BELIEVED).await;
    let tightest = budgets.tightest(Kind::Write);
    assert_eq!(
        (tightest.budget, tightest.limit, tightest.used),
        (30, None, 0.0)
    );
}

#[tokio::test(start_paused = true)]
async fn places_that_are_as_new_are_forgotten() {
    let budgets = budgets(30);
    for i in 0..MANY_PLACES + 10 {
        drop(budgets.reserve(&place(&format!("p{i}")), Needs::READ));
    }
    assert!(budgets.lock().len() < 20);
}

/// What `doctor` shows: the fullest place first, with the limit that Google named.
#[tokio::test(start_paused = true)]
async fn a_report_has_limit_budget_and_use_of_each_place() {
    let budgets = budgets(15);
    for (project, reads) in [("quiet", 0), ("some", 1), ("most", 3), ("theirs", 9)] {
        for _ in 0..reads {
            let mut tokens = budgets.reserve(&place(project), Needs::READ).unwrap();
            tokens.read().unwrap().spend();
        }
    }
    let named = Fault {
        quota_limit: Some(30),
        ..Fault::new(FaultClass::QuotaExceeded, "no")
    };
    budgets.pushed_back(&place("some"), Kind::Write, &named);
    let report = budgets.report(&|project| project != "theirs");
    let shown: Vec<_> = report
        .places
        .iter()
        .map(|p| (&*p.project, p.reads.used, p.writes.limit, p.writes.budget))
        .collect();
    assert_eq!(shown, [("most", 3, None, 15), ("some", 1, Some(30), 15)]);
    let text = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<BudgetReport>(&text).unwrap(), report);
    for n in 0..30 {
        let mut tokens = budgets
            .reserve(&place(&format!("p{n}")), Needs::READ)
            .unwrap();
        tokens.read().unwrap().spend();
    }
    let report = budgets.report(&|_| true);
    assert_eq!((report.places.len(), report.others), (20, 13));
    assert_eq!(report.places[0].project, "theirs");
}
