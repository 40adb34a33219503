#![cfg(feature = "cli")]
//! Who can really invoke: that everything which says that anyone can call a service says the same,
//! and how the operator asks who is above the services.
#![expect(clippy::unwrap_used, reason = "a test that fails panics")]

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use common::{Operator, Setup, eventually, own_path};
use kube::{
    Api, Client,
    api::{ListParams, PostParams},
};
use run_invoker::{
    api::InvokerPolicy,
    cloudrun::{assets, google},
    inherited::SearchScope,
};
use sandbox::Sandbox;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

const ORGANIZATION: &str = "organizations/123456789012";
const REGION: &str = "europe-west1";

/// Whether anyone can call a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Open {
    Yes,
    Perhaps,
    No,
}

/// By name, of every service of the world.
type Answers = BTreeMap<String, Open>;

/// One service for each way of being public, and of not being it although IAM would let everybody.
fn world(sandbox: &Sandbox) -> Answers {
    let everybody = |role: &str| json!([{"role": role, "members": ["allUsers"]}]);
    let (invoker, none) = (everybody("roles/run.invoker"), json!([]));
    let caller = everybody("projects/acme-prod/roles/caller");
    let iap = json!({"iapEnabled": true});
    let ingress = |name: &str| json!({"ingress": format!("INGRESS_TRAFFIC_{name}")});
    let deployer =
        json!([{"role": "projects/acme-prod/roles/deployer", "members": ["user:d@acme.com"]}]);
    let (plain, off) = (Value::Null, true);
    let services = [
        ("acme-prod", "by-member", &invoker, &plain, !off, Open::Yes),
        ("acme-prod", "check-off", &none, &plain, off, Open::Yes),
        ("acme-prod", "by-role", &caller, &plain, !off, Open::Yes),
        (
            "acme-prod",
            "by-unknown-role",
            &everybody("projects/acme-prod/roles/deployer"),
            &plain,
            !off,
            Open::Perhaps,
        ),
        (
            "acme-prod",
            "by-other-role",
            &everybody("roles/run.developer"),
            &plain,
            !off,
            Open::Yes,
        ),
        (
            "acme-prod",
            "by-role-without",
            &everybody("roles/run.viewer"),
            &plain,
            !off,
            Open::No,
        ),
        ("acme-prod", "deployed", &deployer, &plain, !off, Open::No),
        ("acme-prod", "private", &none, &plain, !off, Open::No),
        (
            "acme-prod",
            "inside",
            &invoker,
            &ingress("INTERNAL_ONLY"),
            !off,
            Open::Yes,
        ),
        (
            "acme-prod",
            "inside-by-role",
            &caller,
            &ingress("INTERNAL_LOAD_BALANCER"),
            !off,
            Open::Yes,
        ),
        (
            "acme-prod",
            "closed",
            &invoker,
            &ingress("NONE"),
            !off,
            Open::No,
        ),
        ("acme-prod", "behind-iap", &invoker, &iap, !off, Open::No),
        (
            "acme-prod",
            "behind-iap-by-role",
            &caller,
            &iap,
            !off,
            Open::No,
        ),
        (
            "acme-prod",
            "behind-iap-unchecked",
            &none,
            &iap,
            off,
            Open::No,
        ),
        ("acme-open", "from-above", &none, &plain, !off, Open::Yes),
        (
            "acme-open",
            "from-above-behind-iap",
            &none,
            &iap,
            !off,
            Open::No,
        ),
    ];
    let mut answers = Answers::new();
    for (project, name, bindings, front, is_off, open) in services {
        sandbox.run.deploy(project, REGION, name, &[]);
        sandbox.run.set_bindings(project, REGION, name, bindings);
        sandbox
            .run
            .set_invoker_iam_disabled(project, REGION, name, is_off);
        if !front.is_null() {
            sandbox.run.set_front(project, REGION, name, front);
        }
        answers.insert(name.to_owned(), open);
    }
    sandbox
        .run
        .set_project_bindings("acme-open", &everybody("roles/run.servicesInvoker"));
    let role = |name: &str, permission: &str| {
        let permissions: BTreeSet<String> = [permission.to_owned()].into();
        let name = format!("projects/acme-prod/roles/{name}");
        sandbox.run.set_role(&name, permissions).unwrap();
    };
    role("caller", "run.routes.invoke");
    role("deployer", "run.services.update");
    answers
}

/// A policy for each service, in Audit.
async fn declare(client: &Client, answers: &Answers) {
    let api: Api<InvokerPolicy> = Api::namespaced(client.clone(), "shop");
    for name in answers.keys() {
        let project = if name.starts_with("from-above") {
            "acme-open"
        } else {
            "acme-prod"
        };
        let policy = json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerPolicy",
            "metadata": {"name": name}, "spec": {"project": project, "mode": "Audit",
            "services": [{"name": name, "region": REGION}], "invokers": [{"member": "user:a@acme.com"}]}});
        let policy = serde_json::from_value(policy).unwrap();
        api.create(&PostParams::default(), &policy).await.unwrap();
    }
}

/// What the conditions say, and beside them the entries of the services.
async fn conditions(client: &Client) -> (Answers, Answers) {
    let api: Api<InvokerPolicy> = Api::namespaced(client.clone(), "shop");
    let policies = api.list(&ListParams::default()).await.unwrap();
    let (mut by_condition, mut by_entry) = (Answers::new(), Answers::new());
    for policy in policies {
        let name = policy.metadata.name.unwrap();
        let status = policy.status.unwrap_or_default();
        let exposed = status.conditions.iter().find(|c| c.type_ == "Exposed");
        let open = match exposed.map(|c| c.status.as_str()) {
            Some("True") => Open::Yes,
            Some(_) => Open::Perhaps,
            None => Open::No,
        };
        by_condition.insert(name.clone(), open);
        let open = match status.services.first() {
            Some(entry) if entry.exposed => Open::Yes,
            Some(entry) if entry.message.contains("perhaps anyone can call it") => Open::Perhaps,
            _ => Open::No,
        };
        by_entry.insert(name, open);
    }
    (by_condition, by_entry)
}

/// The program's answer against the sandbox.
async fn kubectl_invoker(sandbox: &Sandbox, args: &[&str]) -> String {
    let config = own_path("effective-kubeconfig");
    std::fs::write(&config, sandbox.kubeconfig()).unwrap();
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_kubectl-invoker"))
        .args(args)
        .env_clear()
        .env("KUBECONFIG", &config)
        .env("RUN_INVOKER_CLOUD_RUN_ENDPOINT", sandbox.run_url())
        .env("RUN_INVOKER_ANONYMOUS", "true")
        .env("COLUMNS", "200")
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap();
    std::fs::remove_file(&config).ok();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!text.is_empty(), "{args:?}: {output:?}");
    text
}

/// What `access` prints under the name of each service.
fn of_table(text: &str) -> Answers {
    let mut answers = Answers::new();
    let mut service = None;
    for line in text.lines() {
        let name = line.split_once(" (").filter(|_| !line.starts_with(' '));
        if let Some((name, rest)) = name.filter(|(_, rest)| rest.ends_with(')')) {
            assert!(rest.starts_with(REGION), "{line}");
            service = Some(name.to_owned());
            answers.insert(name.to_owned(), Open::No);
        } else if let Some(name) = &service {
            let open = match line.trim_start() {
                l if l.starts_with("ANYONE, ") => Open::Yes,
                l if l.starts_with("PERHAPS ANYONE, ") => Open::Perhaps,
                _ => continue,
            };
            answers.insert(name.clone(), open);
        }
    }
    answers
}

/// What the page says at the head of each column, and what its cells of `allUsers` are.
fn of_page(page: &str) -> Answers {
    let head = |part: &str| {
        let name = part.split([' ', '<']).next().unwrap().to_owned();
        let head = part.split("</div>").next().unwrap();
        let open = match head {
            h if h.contains("▲ perhaps anyone") => Open::Perhaps,
            h if h.contains("▲ ") => Open::Yes,
            _ => Open::No,
        };
        (name, open)
    };
    let columns = page.split("<span class=\"service\">").skip(1);
    let answers: Answers = columns.map(head).collect();
    for cell in page.split("aria-label=\"allUsers on ").skip(1) {
        let name = cell.split(':').next().unwrap();
        let is_public = cell.split("</button>").next().unwrap();
        let is_public = is_public.contains("<span class=\"public\">");
        assert_eq!(is_public, answers[name] == Open::Yes, "the cell of {name}");
    }
    answers
}

/// What a plan says, which sees nothing above the services and asks nobody about roles.
fn of_plan(text: &str) -> Answers {
    let plan: Value = serde_json::from_str(text).unwrap();
    let of = |service: &Value| {
        let open = match service["exposed"].as_str() {
            Some(words) if words.starts_with("perhaps") => Open::Perhaps,
            Some(_) => Open::Yes,
            None => Open::No,
        };
        (service["service"].as_str().unwrap().to_owned(), open)
    };
    plan["services"]
        .as_array()
        .unwrap()
        .iter()
        .map(of)
        .collect()
}

/// Condition, entry in the status, metric (and with it the alert), `access`, its page and `plan` say
/// the same of every service: public by member, by a switched-off check, by another role, by a custom
/// role, from above; and of those that IAM would open and that stay closed.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn everything_says_the_same_of_who_anyone_is() {
    let sandbox = Sandbox::start(Default::default()).await.unwrap();
    let client = common::client(&sandbox.kubeconfig()).await;
    common::install(&client).await;
    common::namespace(&client, "shop").await;
    let answers = world(&sandbox);
    declare(&client, &answers).await;
    let setup = Setup {
        inherited: vec![SearchScope::parse(ORGANIZATION).unwrap()],
        ..Setup::default()
    };
    let operator = Operator::start(client.clone(), sandbox.run_url(), &setup).await;
    eventually(Duration::from_secs(30), "the conditions", || async {
        let (by_condition, by_entry) = conditions(&client).await;
        if by_condition == answers && by_entry == answers {
            return Ok(());
        }
        Err(format!("{by_condition:#?}\n{by_entry:#?}"))
    })
    .await;

    let text = operator
        .metrics
        .render(&operator.controller.refresh_gauges());
    let counted = answers.values().filter(|o| **o != Open::No).count();
    let line = format!("run_invoker_exposed_services {counted}");
    assert!(text.lines().any(|l| l == line), "no {line:?}");
    let alerts = common::repository("charts/run-invoker/files/alerts.yaml");
    let alerts = std::fs::read_to_string(alerts).unwrap();
    assert!(alerts.contains("'max(run_invoker_exposed_services) > 0'"));

    let access = ["access", "--effective", "--inherited-scope", ORGANIZATION];
    let table = kubectl_invoker(&sandbox, &access).await;
    assert_eq!(of_table(&table), answers, "{table}");
    let page = [&access[..], &["-o", "html"]].concat();
    let page = kubectl_invoker(&sandbox, &page).await;
    assert_eq!(of_page(&page), answers);

    let plan = kubectl_invoker(&sandbox, &["plan", "-o", "json"]).await;
    let mut unasked = answers.clone();
    unasked.insert("from-above".into(), Open::No);
    for by_role in ["by-role", "inside-by-role"] {
        unasked.insert(by_role.into(), Open::Perhaps);
    }
    assert_eq!(of_plan(&plan), unasked, "{plan}");
    operator.stop().await;
}

/// Answers every request with the same, and keeps the first line of each.
async fn server(answer: String) -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let lines: Arc<Mutex<Vec<String>>> = Arc::default();
    let kept = lines.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answered(stream, answer.clone(), kept.clone()));
        }
    });
    (port, lines)
}

async fn answered(mut stream: TcpStream, answer: String, kept: Arc<Mutex<Vec<String>>>) {
    let mut request = vec![0; 16 * 1024];
    let read = stream.read(&mut request).await.unwrap_or(0);
    let request = String::from_utf8_lossy(&request[..read]).into_owned();
    let first = request.lines().next().unwrap_or_default().to_owned();
    kept.lock().unwrap().push(first);
    stream.write_all(answer.as_bytes()).await.ok();
    stream.shutdown().await.ok();
}

/// Whoever answers a search with another address is not Google, and what is there is no answer.
#[tokio::test]
async fn a_search_is_not_sent_elsewhere() {
    let body = "{}";
    let nothing = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    let (elsewhere, asked) = server(nothing).await;
    for status in [
        "301 Moved Permanently",
        "302 Found",
        "307 Temporary Redirect",
    ] {
        let redirect = format!(
            "HTTP/1.1 {status}\r\nlocation: http://127.0.0.1:{elsewhere}/v1/{ORGANIZATION}:searchAllIamPolicies\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        );
        let (port, first) = server(redirect).await;
        let google = google::Google::connect(google::Options {
            endpoint: format!("http://127.0.0.1:{port}"),
            credentials: google::credentials(true).unwrap(),
            timeout: Duration::from_secs(5),
            quota_project: None,
        })
        .await
        .unwrap();
        let scope = SearchScope::parse(ORGANIZATION).unwrap();
        let found = assets::search(&google, &scope).await;
        assert!(found.is_err(), "{status}: {found:?}");
        assert_eq!(first.lock().unwrap().len(), 1, "{status}");
    }
    assert!(asked.lock().unwrap().is_empty(), "{asked:?}");
}

/// The operator itself, with credentials that a server here gives tokens for, searching as `account`
/// if there is one. Whatever is not on this machine is asked through a proxy that refuses, and
/// says what it was asked for.
async fn searching_as(sandbox: &Sandbox, account: Option<&str>) -> (std::process::Child, Lines) {
    let body =
        json!({"access_token": "as:operator@acme.com", "token_type": "Bearer", "expires_in": 3600})
            .to_string();
    let tokens = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    let (tokens, _) = server(tokens).await;
    let (proxy, asked) =
        server("HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".into())
            .await;
    let folder = own_path("impersonate");
    std::fs::create_dir_all(&folder).unwrap();
    let login = json!({"type": "authorized_user", "client_id": "c", "client_secret": "s", "refresh_token": "r",
        "token_uri": format!("http://127.0.0.1:{tokens}/token")});
    std::fs::write(folder.join("login.json"), login.to_string()).unwrap();
    std::fs::write(folder.join("kubeconfig"), sandbox.kubeconfig()).unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_run-invoker"));
    command
        .args(["--cloud-run-endpoint", &sandbox.run_url()])
        .args(["--inherited-scope", ORGANIZATION, "--identity", "x"])
        .args(["--listen", "127.0.0.1:0"])
        .env("KUBECONFIG", folder.join("kubeconfig"))
        .env("GOOGLE_APPLICATION_CREDENTIALS", folder.join("login.json"))
        .env("ALL_PROXY", format!("http://127.0.0.1:{proxy}"))
        .env("NO_PROXY", "127.0.0.1,localhost")
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if let Some(account) = account {
        command.args(["--inherited-impersonate", account]);
    }
    (command.spawn().unwrap(), asked)
}

type Lines = Arc<Mutex<Vec<String>>>;

/// With an account to act as, the search asks for its token and sends nothing before it has it:
/// never as the operator itself, whose own calls go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_search_as_another_account_is_never_sent_as_the_operator() {
    for account in [None, Some("reader@acme-prod.iam.gserviceaccount.com")] {
        let sandbox = Sandbox::start(Default::default()).await.unwrap();
        let client = common::client(&sandbox.kubeconfig()).await;
        common::install(&client).await;
        common::namespace(&client, "shop").await;
        sandbox.run.deploy("acme-prod", REGION, "private", &[]);
        declare(&client, &[("private".to_owned(), Open::No)].into()).await;
        let (mut process, asked) = searching_as(&sandbox, account).await;
        let is_asked =
            |line: &String| line.starts_with("CONNECT iamcredentials.googleapis.com:443");
        let searches = || sandbox.journal.calls(0, "SearchAllIamPolicies");
        let api: Api<InvokerPolicy> = Api::namespaced(client.clone(), "shop");
        eventually(Duration::from_secs(60), "a look and a search", || async {
            let status = api.get("private").await.unwrap().status.unwrap_or_default();
            let ready = status.conditions.iter().find(|c| c.type_ == "Ready");
            let is_read = ready.is_some_and(|c| c.reason == "Audited");
            let tokens = asked.lock().unwrap().clone();
            let has_begun = match account {
                None => searches() > 0,
                Some(_) => tokens.iter().any(is_asked),
            };
            if is_read && has_begun {
                return Ok(());
            }
            Err(format!("{account:?}: {tokens:?} {status:#?}"))
        })
        .await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        process.kill().unwrap();
        process.wait().unwrap();
        let tokens = asked.lock().unwrap().clone();
        assert_eq!(searches() > 0, account.is_none(), "{account:?}");
        assert_eq!(tokens.iter().any(is_asked), account.is_some(), "{tokens:?}");
        assert!(tokens.iter().all(is_asked), "{tokens:?}");
    }
}
