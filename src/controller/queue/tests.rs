use super::{
    choice::{MOST_PER_PLACE, PER_PLACE},
    state::MOST_PER_WORKER,
    *,
};
use crate::cloudrun::limit::{Budget, Needs};

fn queue_with(budget: Budget) -> Queue {
    Queue::new(Budgets::new(budget), 64)
}
fn queue() -> Queue {
    // Enough for whatever is not about budgets.
    queue_with(Budget {
        reads_per_minute: 1_000_000,
        writes_per_minute: 1_000_000,
        concurrency: 64,
    })
}
fn s(name: &str) -> RunService {
    RunService::new("p", "r", name)
}
async fn pop(q: &Queue) -> Job {
    tokio::time::timeout(Duration::from_secs(1), q.next())
        .await
        .unwrap()
}
async fn nothing(q: &Queue) -> bool {
    tokio::time::timeout(Duration::from_millis(1), q.next())
        .await
        .is_err()
}

#[tokio::test(start_paused = true)]
async fn equal_requests_fold_and_the_urgent_priority_counts() {
    let q = queue();
    q.add(&s("a"), Priority::Periodic);
    q.add(&s("a"), Priority::Declared);
    q.add(&s("a"), Priority::Periodic);
    let job = pop(&q).await;
    assert_eq!(job.priority, Priority::Declared);
    q.done(job, End::Over);
    assert!(nothing(&q).await);
}

#[tokio::test(start_paused = true)]
async fn a_service_is_never_worked_on_twice_at_once() {
    let q = queue();
    q.add(&s("a"), Priority::Drift);
    let job = pop(&q).await;
    q.add(&s("a"), Priority::Drift);
    q.add(&s("a"), Priority::Periodic);
    assert!(nothing(&q).await && q.is_running(&s("a")));
    q.done(job, End::Over);
    let job = pop(&q).await;
    assert_eq!(job.priority, Priority::Drift);
    q.done(job, End::Over);
    assert!(nothing(&q).await);
}

#[tokio::test(start_paused = true)]
async fn a_declared_change_does_not_wait_behind_ten_thousand_others() {
    let q = queue();
    for i in 0..10_000 {
        q.add(
            &RunService::new("p", format!("r{}", i % 50), format!("s{i}")),
            Priority::Periodic,
        );
    }
    q.add(&s("edit"), Priority::Declared);
    let mut position = 0;
    while pop(&q).await.service != s("edit") {
        position += 1;
    }
    assert!(position <= 1, "served after {position}");
}

#[tokio::test(start_paused = true)]
async fn a_busy_priority_does_not_starve_a_lower_one() {
    let q = queue();
    q.add(&s("old"), Priority::Periodic);
    tokio::time::advance(Duration::from_secs(1)).await;
    for i in 0..100 {
        q.add(&s(&format!("d{i}")), Priority::Declared);
    }
    for turn in 0..8 {
        let job = pop(&q).await;
        if job.service == s("old") {
            return;
        }
        q.done(job, End::Over);
        assert!(turn < 7, "the periodic resync starved");
    }
}

#[tokio::test(start_paused = true)]
async fn a_project_that_keeps_threads_busy_steps_back_while_others_work() {
    let q = queue();
    let theirs = |i: usize| RunService::new("large", "r", format!("s{i}"));
    (0..100).for_each(|i| q.add(&theirs(i), Priority::Declared));
    let first = pop(&q).await;
    q.done(first, End::Over);
    q.spent(&"large".into(), Duration::from_secs(1));
    // Nobody else has anything to do: why should it wait?
    let alone = pop(&q).await;
    assert_eq!(&*alone.service.project, "large");
    q.add(&s("ours"), Priority::Periodic);
    let ours = pop(&q).await;
    assert_eq!(ours.service, s("ours"), "whatever its priority");
    assert!(nothing(&q).await, "while ours is under way");
    // It gets its share nevertheless, however long others work.
    tokio::time::advance(Duration::from_secs(4)).await;
    assert_eq!(&*pop(&q).await.service.project, "large");
    q.spent(&"large".into(), Duration::from_secs(1));
    assert!(nothing(&q).await);
    q.done(ours, End::Over);
    assert_eq!(&*pop(&q).await.service.project, "large");
}

#[tokio::test(start_paused = true)]
async fn waiting_keeps_no_thread_busy() {
    let ((), busy) = timed(tokio::time::sleep(Duration::from_millis(50))).await;
    assert_eq!(busy, Duration::ZERO);
    // The clock goes on while this is polled, as it does while something is computed.
    let ((), busy) = timed(tokio::time::advance(Duration::from_millis(20))).await;
    assert_eq!(busy, Duration::from_millis(20));
}

#[tokio::test(start_paused = true)]
async fn a_place_that_is_full_holds_nobody_else_up() {
    let q = queue();
    for i in 0..100 {
        q.add(&s(&format!("s{i}")), Priority::Drift);
    }
    let mut jobs = Vec::new();
    for _ in 0..PER_PLACE {
        jobs.push(pop(&q).await);
    }
    assert!(nothing(&q).await);
    q.add(&RunService::new("other", "r", "x"), Priority::Periodic);
    assert_eq!(&*pop(&q).await.service.project, "other");
    q.add(&s("edit"), Priority::Declared);
    assert_eq!(pop(&q).await.service, s("edit"));
}

#[tokio::test(start_paused = true)]
async fn calls_that_hang_hold_nobody_up() {
    let q = queue();
    let mut hung = Vec::new();
    for place in 0..100 {
        for i in 0..MOST_PER_PLACE * 2 {
            q.add(
                &RunService::new(format!("dead{place}"), "r", format!("s{i}")),
                Priority::Declared,
            );
        }
    }
    for _ in 0..100 {
        while let Ok(mut job) = tokio::time::timeout(Duration::from_millis(1), q.next()).await {
            job.tokens.read().unwrap().spend();
            hung.push(job);
        }
        tokio::time::advance(Duration::from_secs(2)).await;
    }
    assert_eq!(hung.len(), 64 * MOST_PER_WORKER);
    q.add(&s("edit"), Priority::Declared);
    assert_eq!(pop(&q).await.service, s("edit"));
}

#[tokio::test(start_paused = true)]
async fn a_timer_rings_once_and_an_earlier_request_answers_it() {
    let q = queue();
    q.add_at(
        &s("a"),
        Priority::Periodic,
        Instant::now() + Duration::from_secs(60),
    );
    q.add_at(
        &s("a"),
        Priority::Retry,
        Instant::now() + Duration::from_secs(5),
    );
    let started = Instant::now();
    let job = tokio::time::timeout(Duration::from_secs(100), q.next())
        .await
        .unwrap();
    assert_eq!(
        (job.priority, started.elapsed().as_secs()),
        (Priority::Retry, 5)
    );
    assert_eq!(q.done(job, End::Failed), 1);
    assert!(
        tokio::time::timeout(Duration::from_secs(100), q.next())
            .await
            .is_err()
    );
    q.add_at(
        &s("a"),
        Priority::Periodic,
        Instant::now() + Duration::from_secs(60),
    );
    q.add(&s("a"), Priority::Drift);
    assert_eq!(q.done(pop(&q).await, End::Failed), 2);
    assert!(
        tokio::time::timeout(Duration::from_secs(100), q.next())
            .await
            .is_err()
    );
}

/// Takes up everything that can be within a time; what wants to write waits for the right to.
async fn work(q: &Queue, time: Duration) -> Vec<RunService> {
    let (end, mut written) = (Instant::now() + time, Vec::new());
    while let Ok(mut job) = tokio::time::timeout_at(end, q.next()).await {
        while let Some(token) = job.tokens.read() {
            token.spend();
        }
        match job.tokens.write() {
            Some(token) => {
                token.spend();
                written.push(job.service.clone());
                q.done(job, End::Over);
            }
            None => {
                q.done(job, End::Waits);
            }
        }
    }
    written
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_quota_occupies_nothing_and_keeps_its_turn() {
    let q = queue_with(Budget {
        reads_per_minute: 6000,
        writes_per_minute: 6,
        concurrency: 64,
    });
    let names: Vec<RunService> = (0..40).map(|i| s(&format!("s{i:02}"))).collect();
    q.add_all(&names, Priority::Declared);
    assert_eq!(
        work(&q, Duration::from_secs(1)).await.len(),
        2,
        "the burst of six"
    );
    assert_eq!(q.running(), 0);
    // A new request is served at once, and costs nobody its turn.
    q.add(&names[20], Priority::Declared);
    let job = pop(&q).await;
    assert_eq!((&job.service, job.tokens.left()), (&names[20], Needs::READ));
    q.done(job, End::Waits);
    let written = work(&q, Duration::from_secs(700)).await;
    assert_eq!(written, names[2..]);
}

/// A service whose refused members are searched for wants write after write.
#[tokio::test(start_paused = true)]
async fn who_had_its_write_stands_behind_those_that_had_none() {
    let q = queue_with(Budget {
        reads_per_minute: 6000,
        writes_per_minute: 6,
        concurrency: 64,
    });
    let greedy = s("greedy");
    q.add(&greedy, Priority::Declared);
    let mut served = Vec::new();
    let end = Instant::now() + Duration::from_secs(120);
    let mut arrived = false;
    while let Ok(mut job) = tokio::time::timeout_at(end, q.next()).await {
        let has_written = job.tokens.write().inspect(|t| t.spend()).is_some();
        if has_written {
            served.push(job.service.clone());
        }
        if served.len() == 4 && !arrived {
            arrived = true;
            q.add(&s("late"), Priority::Declared);
            q.add(&s("later"), Priority::Declared);
        }
        let wants_more = job.service == greedy || !has_written;
        q.done(job, if wants_more { End::Waits } else { End::Over });
    }
    let at = |name: &str| served.iter().position(|x| *x == s(name)).unwrap();
    assert!(at("late") <= 5 && at("later") <= 7, "{served:?}");
    assert!(q.others_wait_to_write(&s("late")));
}

#[tokio::test(start_paused = true)]
async fn readers_do_not_starve_one_that_writes() {
    let q = queue_with(Budget {
        reads_per_minute: 6,
        writes_per_minute: 60,
        concurrency: 64,
    });
    q.add(&s("edit"), Priority::Declared);
    q.done(pop(&q).await, End::Waits);
    for i in 0..20 {
        q.add(&s(&format!("s{i}")), Priority::Periodic);
    }
    assert_eq!(
        work(&q, Duration::from_secs(60)).await.first(),
        Some(&s("edit"))
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_let_go_leaves_nothing() {
    let q = queue();
    q.add(&s("a"), Priority::Declared);
    q.add_at(&s("b"), Priority::Declared, Instant::now());
    q.let_go(|_| true);
    assert!(nothing(&q).await);
    q.state
        .with(|s| assert!(s.items.is_empty() && s.places.is_empty()));
}
