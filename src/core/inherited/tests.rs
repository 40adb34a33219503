use serde_json::{Value, json};

use super::*;
use crate::fault::{Fault, FaultClass};

const MANAGER: &str = "//cloudresourcemanager.googleapis.com/";

fn result(kind: &str, name: &str, folders: &[&str], bindings: Value) -> Value {
    json!({"resource": format!("{MANAGER}{name}"), "assetType": format!("cloudresourcemanager.googleapis.com/{kind}"),
        "project": "projects/77", "folders": folders, "organization": "organizations/1", "policy": {"bindings": bindings}})
}

fn binding(role: &str, members: &[&str]) -> Value {
    json!({"role": role, "members": members})
}

fn search(results: &[Value]) -> Search {
    let mut search = Search::default();
    search.add(read_page(&json!({"results": results})).unwrap());
    search
}

fn organization() -> SearchScope {
    SearchScope::parse("organizations/1").unwrap()
}

fn names(above: &Above<'_>) -> Vec<String> {
    match above {
        Above::Known { grants, .. } => grants.iter().map(|g| g.words()).collect(),
        other => vec![format!("{other:?}")],
    }
}

#[test]
fn a_project_inherits_from_its_folders_and_its_organization_and_from_no_other() {
    let mut known = Inherited::of(&[organization()]);
    assert_eq!(known.above("shop"), Above::Waiting);
    let found = search(&[
        result(
            "Project",
            "projects/shop",
            &["folders/5", "folders/4"],
            json!([binding("roles/owner", &["user:owner@acme.com"])]),
        ),
        result(
            "Project",
            "projects/other",
            &["folders/6"],
            json!([binding("roles/owner", &["user:not-here@acme.com"])]),
        ),
        result(
            "Folder",
            "folders/5",
            &[],
            json!([binding("roles/run.invoker", &["group:near@acme.com"])]),
        ),
        result(
            "Folder",
            "folders/4",
            &[],
            json!([{"role": "roles/run.admin", "members": ["group:far@acme.com"], "condition": {"expression": "true", "title": "t"}}]),
        ),
        result(
            "Folder",
            "folders/6",
            &[],
            json!([binding("roles/run.invoker", &["user:nor-here@acme.com"])]),
        ),
        result(
            "Organization",
            "organizations/1",
            &[],
            json!([binding("roles/run.invoker", &["domain:acme.com"])]),
        ),
    ]);
    assert!(known.apply(&organization(), Ok(found)));
    assert_eq!(
        names(&known.above("shop")),
        [
            "domain:acme.com (roles/run.invoker on organizations/1)",
            "group:far@acme.com (roles/run.admin on folders/4, under a condition)",
            "group:near@acme.com (roles/run.invoker on folders/5)",
            "user:owner@acme.com (roles/owner on projects/shop)",
        ]
    );
    // One that nothing shows is not said to inherit nothing.
    assert_eq!(known.above("elsewhere"), Above::Unplaced);
}

#[test]
fn a_service_shows_where_its_project_is_and_its_own_grants_are_not_inherited() {
    let mut known = Inherited::of(&[organization()]);
    let service = json!({"resource": "//run.googleapis.com/projects/shop/locations/europe-west1/services/web",
        "assetType": "run.googleapis.com/Service", "project": "projects/9", "folders": ["folders/5"],
        "organization": "organizations/1", "policy": {"bindings": [binding("roles/run.invoker", &["user:direct@acme.com"])]}});
    let folder = result(
        "Folder",
        "folders/5",
        &[],
        json!([binding("roles/run.invoker", &["group:near@acme.com"])]),
    );
    known.apply(&organization(), Ok(search(&[service, folder])));
    assert_eq!(
        names(&known.above("shop")),
        ["group:near@acme.com (roles/run.invoker on folders/5)"]
    );
    assert_eq!(known.above("9"), known.above("shop"), "by its number too");
}

fn in_service(folder: &str, bindings: Value) -> Value {
    json!({"resource": "//run.googleapis.com/projects/shop/locations/europe-west1/services/web",
        "assetType": "run.googleapis.com/Service", "project": "projects/77", "folders": [folder],
        "organization": "organizations/1", "policy": {"bindings": bindings}})
}

#[test]
fn a_search_shows_what_custom_roles_carry_wherever_they_are_granted() {
    use crate::iam::Carries;
    let mut known = Inherited::of(&[organization()]);
    let found = search(&[
        in_service(
            "folders/5",
            json!([
                binding("projects/shop/roles/caller", &["allUsers"]),
                binding("roles/run.invoker", &["user:a@acme.com"])
            ]),
        ),
        result(
            "Folder",
            "folders/5",
            &[],
            json!([binding(
                "organizations/1/roles/ops",
                &["group:ops@acme.com"]
            )]),
        ),
    ]);
    known.apply(&organization(), Ok(found));
    let roles = known.roles().clone();
    for (role, carries) in [
        ("projects/shop/roles/caller", Carries::Yes),
        ("organizations/1/roles/ops", Carries::Yes),
        ("roles/run.invoker", Carries::Yes),
        ("projects/shop/roles/deployer", Carries::Unknown),
        ("roles/run.viewer", Carries::No),
    ] {
        assert_eq!(roles.carries(role), carries, "{role}");
    }
    known.apply(&organization(), Err(Fault::new(FaultClass::Timeout, "no")));
    assert_eq!(known.roles(), &roles, "what was seen stays");
    assert!(known.apply(&organization(), Ok(search(&[]))));
    assert_eq!(
        known.roles().carries("projects/shop/roles/caller"),
        Carries::Unknown
    );
}

/// Whom a folder lets in, who are in no other one.
fn folder(name: &str) -> Value {
    let member = format!("group:of-{}@acme.com", name.replace('/', "-"));
    result(
        "Folder",
        name,
        &[],
        json!([binding("roles/run.invoker", &[&member])]),
    )
}

fn above_shop(known: &Inherited) -> Vec<String> {
    let Above::Known { grants, .. } = known.above("shop") else {
        panic!("{:?}", known.above("shop"))
    };
    grants.iter().map(|g| g.resource.to_string()).collect()
}

/// A project moved, and the index shows it row by row.
#[test]
fn where_rows_contradict_each_other_the_projects_own_counts_and_else_the_resource_manager() {
    let own = |above: &str| result("Project", "projects/shop", &[above], json!([]));
    let (old, new) = (
        in_service("folders/4", json!([])),
        in_service("folders/5", json!([])),
    );
    let folders = [
        folder("folders/4"),
        folder("folders/5"),
        folder("folders/6"),
    ];
    let searched = |known: &mut Inherited, rows: &[&Value]| {
        let rows: Vec<Value> = rows.iter().copied().chain(&folders).cloned().collect();
        known.apply(&organization(), Ok(search(&rows)));
    };
    for rows in [[&own("folders/5"), &old], [&old, &own("folders/5")]] {
        let mut known = Inherited::of(&[organization()]);
        searched(&mut known, &rows);
        assert_eq!(above_shop(&known), ["folders/5"]);
        assert!(!known.needs_place("shop"));
    }
    for rows in [[&old, &new], [&new, &old]] {
        let mut known = Inherited::of(&[organization()]);
        searched(&mut known, &rows);
        assert!(
            known.needs_place("shop"),
            "two services say different things"
        );
        known.place("shop", vec!["folders/6".into(), "organizations/1".into()]);
        assert_eq!(above_shop(&known), ["folders/6"]);
        // The same dispute after the next search is no answer either.
        searched(&mut known, &rows);
        assert_eq!(above_shop(&known), ["folders/6"]);
        searched(&mut known, &[&new]);
        assert_eq!(above_shop(&known), ["folders/5"], "settled since");
        assert!(!known.needs_place("shop"));
    }
}

#[test]
fn what_was_learned_last_of_where_a_project_is_counts() {
    let scopes =
        ["folders/4", "folders/5", "organizations/1"].map(|s| SearchScope::parse(s).unwrap());
    let [four, five, top] = &scopes;
    let mut known = Inherited::of(&scopes);
    let shop = |above: &str| result("Project", "projects/shop", &[above], json!([]));
    let folders = || [folder("folders/4"), folder("folders/5")];
    let everything = |above: &str| search(&[&folders()[..], &[shop(above)]].concat());
    known.apply(four, Ok(search(&[folder("folders/4"), shop("folders/4")])));
    known.apply(top, Ok(everything("folders/4")));
    assert_eq!(above_shop(&known), ["folders/4"]);
    // It moved: one search shows it before the other does, and the other repeats what is old.
    known.apply(five, Ok(search(&[folder("folders/5"), shop("folders/5")])));
    assert_eq!(above_shop(&known), ["folders/5"]);
    assert!(
        !known.apply(top, Ok(everything("folders/4"))),
        "nothing new"
    );
    assert_eq!(above_shop(&known), ["folders/5"]);
    known.apply(four, Ok(search(&[folder("folders/4")])));
    known.apply(top, Ok(everything("folders/5")));
    assert_eq!(above_shop(&known), ["folders/5"]);
    // And back again.
    known.apply(four, Ok(search(&[folder("folders/4"), shop("folders/4")])));
    assert_eq!(above_shop(&known), ["folders/4"]);
}

#[test]
fn a_search_that_fails_forgets_nothing_and_one_that_never_worked_says_why() {
    let denied = Fault::new(FaultClass::PermissionDenied, "no");
    let mut known = Inherited::of(&[organization()]);
    assert!(known.apply(&organization(), Err(denied.clone())));
    assert_eq!(known.above("shop"), Above::Unknown(&denied));
    assert!(
        !known.apply(&organization(), Err(denied.clone())),
        "the same again is no news"
    );
    let owner = result(
        "Project",
        "projects/shop",
        &[],
        json!([binding("roles/owner", &["user:owner@acme.com"])]),
    );
    assert!(known.apply(&organization(), Ok(search(std::slice::from_ref(&owner)))));
    assert!(!known.apply(&organization(), Ok(search(&[owner]))));
    assert!(known.apply(&organization(), Err(denied)));
    assert_eq!(names(&known.above("shop")).len(), 1);
    assert!(matches!(
        known.above("shop"),
        Above::Known { stale: true, .. }
    ));
}

#[test]
fn one_scope_that_cannot_be_searched_is_said_beside_what_another_shows() {
    let project = SearchScope::parse("projects/shop").unwrap();
    let mut known = Inherited::of(&[organization(), project.clone()]);
    let denied = Fault::new(FaultClass::PermissionDenied, "no");
    known.apply(&organization(), Err(denied.clone()));
    assert_eq!(known.above("shop"), Above::Waiting);
    known.apply(&project, Ok(search(&[])));
    let Above::Known { grants, unseen, .. } = known.above("shop") else {
        panic!("it was searched");
    };
    assert_eq!((grants.len(), unseen), (0, Some(&denied)));
}

#[test]
fn a_project_without_any_grant_is_placed_by_its_ancestry() {
    let mut known = Inherited::of(&[organization()]);
    let top = result(
        "Organization",
        "organizations/1",
        &[],
        json!([binding("roles/owner", &["user:root@acme.com"])]),
    );
    known.apply(&organization(), Ok(search(&[top])));
    assert_eq!(known.above("bare"), Above::Unplaced);
    let resource = |kind: &str, id: &str| json!({"resourceId": {"type": kind, "id": id}});
    let ancestry = |top: &str| {
        let answer = json!({"ancestor": [resource("project", "bare"), resource("folder", "5"), resource("organization", top)]});
        read_ancestry(&answer).unwrap()
    };
    known.place("bare", ancestry("1"));
    assert_eq!(
        names(&known.above("bare")),
        ["user:root@acme.com (roles/owner on organizations/1)"]
    );
    assert!(known.needs_place("bare"), "it may move");
    known.place("bare", vec!["organizations/2".into()]);
    assert_eq!(known.above("bare"), Above::Unplaced);
    // Nothing is known of another organization.
    known.place("strange", ancestry("2"));
    assert_eq!(known.above("strange"), Above::Unplaced);
    assert!(read_ancestry(&json!({"ancestor": [resource("galaxy", "1")]})).is_err());
    assert!(read_ancestry(&json!({})).is_err());
}

#[test]
fn what_is_above_and_in_no_scope_is_named() {
    let unsearched = |scope: &str, results: &[Value]| {
        let scope = SearchScope::parse(scope).unwrap();
        let mut known = Inherited::of(std::slice::from_ref(&scope));
        known.apply(&scope, Ok(search(results)));
        match known.above("shop") {
            Above::Known { unsearched, .. } => unsearched,
            other => panic!("{other:?}"),
        }
    };
    let shop = result(
        "Project",
        "projects/shop",
        &["folders/5", "folders/4"],
        json!([]),
    );
    let shop = std::slice::from_ref(&shop);
    assert_eq!(unsearched("organizations/1", shop), None);
    assert_eq!(unsearched("folders/4", shop).unwrap(), "organizations/1");
    assert_eq!(
        unsearched("projects/shop", shop).unwrap(),
        "folders/5, folders/4, organizations/1"
    );
    assert_eq!(
        unsearched("projects/shop", &[]).unwrap(),
        "what is above projects/shop"
    );
}

#[test]
fn who_cannot_invoke_is_nobody_who_may() {
    let grants = json!([binding(
        "roles/run.admin",
        &[
            "deleted:user:gone@acme.com?uid=1",
            "principal://iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/subject/s",
            "user:a@acme.com"
        ]
    )]);
    let page =
        read_page(&json!({"results": [result("Folder", "folders/1", &[], grants)]})).unwrap();
    let words: Vec<String> = page.grants.iter().map(InheritedGrant::words).collect();
    assert_eq!(words, ["user:a@acme.com (roles/run.admin on folders/1)"]);
}

#[test]
fn a_principal_of_many_projects_counts_once_on_each_level() {
    let mut known = Inherited::of(&[organization()]);
    let owner = |p: &str| {
        result(
            "Project",
            p,
            &[],
            json!([binding(
                "roles/owner",
                &["user:Owner@acme.com", "user:b@acme.com"]
            )]),
        )
    };
    let all = [
        owner("projects/a"),
        owner("projects/b"),
        result(
            "Organization",
            "organizations/1",
            &[],
            json!([binding("roles/run.admin", &["user:owner@acme.com"])]),
        ),
    ];
    known.apply(&organization(), Ok(search(&all)));
    let counts: Vec<usize> = known.principals().into_values().collect();
    assert_eq!(counts, [2, 0, 1]);
}

#[test]
fn what_is_no_answer_of_googles_is_refused_whole() {
    for (answer, why) in [
        (json!([]), "no object"),
        (json!({"items": []}), "\"items\""),
        (json!({"results": 7}), "invalid type"),
        (
            json!({"results": [{"assetType": "cloudresourcemanager.googleapis.com/Folder", "resource": "folders/1"}]}),
            "without its name",
        ),
        (
            json!({"results": [result("Folder", "folders/1", &[], json!([binding("r", &[&"x".repeat(3000)])]))]}),
            "3000",
        ),
        (
            json!({"results": [result("Folder", "folders/1", &[], json!([binding("r", &[""])]))]}),
            "empty role or member",
        ),
        (
            json!({"results": [result("Folder", "folders/1", &[], json!([binding("r", &["user:a\u{1b}[2J@b.co"])]))]}),
            "control characters",
        ),
    ] {
        let error = read_page(&answer).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
    assert_eq!(read_page(&json!({})), Ok(Page::default()));
}

#[test]
fn scopes_are_organizations_folders_and_projects() {
    for good in [
        "organizations/1",
        "folders/22",
        "projects/acme-prod",
        "projects/example.com:app",
    ] {
        assert_eq!(SearchScope::parse(good).unwrap().as_str(), good);
    }
    for bad in [
        "",
        "organizations/x",
        "folders/",
        "projects/A",
        "projects/a/b",
        "acme-prod",
        "projects/a?x",
    ] {
        let error = SearchScope::parse(bad).unwrap_err();
        assert!(error.contains("organizations/NUMBER"), "{error}");
    }
    assert_eq!(
        search_path(&organization(), "a=b/ä"),
        "v1/organizations/1:searchAllIamPolicies?query=policy.role.permissions:run.routes.invoke&pageSize=500&pageToken=a%3Db%2F%C3%A4"
    );
}
