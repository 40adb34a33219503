//! What the values of the chart are for: each has its place in the schema, and does what it says.

use super::*;

fn yaml(file: &str) -> Value {
    let text = fs::read_to_string(repository("charts/run-invoker").join(file)).unwrap();
    serde_saphyr::from_str(&text).unwrap()
}

/// The Deployment's Pod.
fn pod(rendered: &[Value]) -> &Value {
    let deployment = of_kind(rendered, "Deployment").next().unwrap();
    &deployment["spec"]["template"]["spec"]
}

/// The paths of all values that have a place of their own in the schema.
fn paths(at: &str, schema: &Value, into: &mut BTreeSet<String>) {
    for (key, schema) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{at}.{key}");
        paths(&path, schema, into);
        into.insert(path);
    }
}

#[test]
fn the_schema_knows_every_value_and_no_other() {
    let text = fs::read_to_string(repository("charts/run-invoker/values.schema.json")).unwrap();
    let schema: Value = serde_json::from_str(&text).unwrap();
    fn look(at: &str, value: &Value, schema: &Value, seen: &mut BTreeSet<String>) {
        let open = schema["properties"].is_null();
        assert!(
            !schema["type"].is_null() || !schema["enum"].is_null(),
            "{at} has no type in values.schema.json"
        );
        if open {
            return;
        }
        assert_eq!(schema["additionalProperties"], false, "{at}");
        for (key, value) in value.as_object().unwrap() {
            let path = format!("{at}.{key}");
            let below = &schema["properties"][key];
            assert!(!below.is_null(), "{path} is not in values.schema.json");
            seen.insert(path.clone());
            look(&path, value, below, seen);
        }
    }
    let mut seen = BTreeSet::new();
    look("", &yaml("values.yaml"), &schema, &mut seen);
    let mut known = BTreeSet::new();
    paths("", &schema, &mut known);
    let spare: Vec<_> = known.difference(&seen).collect();
    // Helm's own, and those that earlier charts had.
    assert_eq!(
        spare,
        [".global", ".metrics.dashboard", ".settings.approvals"]
    );
}

#[test]
fn what_was_added_since_the_first_chart_has_one_default() {
    let helpers =
        fs::read_to_string(repository("charts/run-invoker/templates/_helpers.tpl")).unwrap();
    let (_, added) = helpers
        .split_once("{{- define \"run-invoker.added\" -}}")
        .unwrap();
    let (added, _) = added.split_once("{{- end }}").unwrap();
    let added: Value = serde_saphyr::from_str(added).unwrap();
    let values = yaml("values.yaml");
    for (path, default) in added.as_object().unwrap() {
        let pointer = format!("/{}", path.replace('.', "/"));
        assert_eq!(values.pointer(&pointer), Some(default), "{path}");
    }
}

#[test]
fn without_an_image_the_chart_says_what_to_do() {
    for command in ["template", "install"] {
        let (fine, text) = tool(
            "helm",
            &[command, "run-invoker", ".", "--dry-run=client"],
            &repository("charts/run-invoker"),
        );
        assert!(!fine, "{command}");
        for words in [
            "image.repository is not set",
            "no image is published yet",
            "make image",
            "--set image.repository=",
        ] {
            assert!(text.contains(words), "{command}: {text}");
        }
    }
    let image = |args: &[&str]| pod(&objects(&render(args)))["containers"][0]["image"].clone();
    let version = yaml("Chart.yaml")["appVersion"].clone();
    let version = version.as_str().unwrap();
    assert_eq!(version, env!("CARGO_PKG_VERSION"));
    let repository = IMAGE.strip_prefix("image.repository=").unwrap();
    assert_eq!(image(&[]), format!("{repository}:{version}"));
    assert_eq!(image(&["--set", "image.tag=x"]), format!("{repository}:x"));
    let digest = format!("sha256:{}", "0".repeat(64));
    assert_eq!(
        image(&["--set", &format!("image.tag=x,image.digest={digest}")]),
        format!("{repository}@{digest}")
    );
}

#[test]
fn names_can_be_replaced() {
    let own = |o: &&Value| {
        let kind = o["kind"].as_str().unwrap();
        kind != "CustomResourceDefinition" && kind != "InvokerGuardrail"
    };
    for (set, name, label) in [
        ("nameOverride=", "run-invoker", "run-invoker"),
        ("nameOverride=access", "run-invoker-access", "access"),
        ("nameOverride=run", "run-invoker", "run"),
        ("fullnameOverride=access", "access", "run-invoker"),
        ("fullnameOverride=a,nameOverride=b", "a", "b"),
    ] {
        let rendered = objects(&render(&[
            "--set",
            set,
            "--set",
            SUBSCRIPTION,
            "--set",
            "metrics.monitor=PodMonitor,metrics.rules.enabled=true,metrics.dashboards.enabled=true",
            "--set",
            "admission.enabled=true,admission.mutate=true,admission.sameAccount.enabled=true",
        ]));
        let mut selectors = 0;
        for object in rendered.iter().filter(own) {
            let found = object["metadata"]["name"].as_str().unwrap();
            assert!(
                found == name || found.starts_with(&format!("{name}-")),
                "{set}: {found}"
            );
            let labels = &object["metadata"]["labels"];
            assert_eq!(labels["app.kubernetes.io/name"], label, "{set}: {found}");
            let spec = &object["spec"];
            for selector in [
                &spec["selector"]["matchLabels"],
                &spec["podSelector"]["matchLabels"],
            ] {
                if !selector.is_null() {
                    assert_eq!(selector["app.kubernetes.io/name"], label, "{set}: {found}");
                    selectors += 1;
                }
            }
            for subject in object["subjects"].as_array().into_iter().flatten() {
                assert_eq!(subject["name"], name);
                assert_eq!(object["roleRef"]["name"], name);
            }
        }
        // Deployment, PodDisruptionBudget, NetworkPolicy, PodMonitor.
        assert_eq!(selectors, 4, "{set}");
        let pod = pod(&rendered);
        assert_eq!(pod["serviceAccountName"], name);
        let args = pod["containers"][0]["args"].as_array().unwrap();
        assert!(args.contains(&json!(format!("--lease-name={name}"))));
        // The Leases that the operator may write are those that it will.
        let role = of_kind(&rendered, "Role").next().unwrap();
        let leases: Vec<String> = granted(role).into_iter().filter_map(|r| r.name).collect();
        let wanted = [
            format!("{name}-circuit"),
            format!("{name}-events"),
            name.to_owned(),
        ];
        for lease in &leases {
            assert!(wanted.contains(lease), "{set}: {lease}");
        }
        assert_eq!(leases.iter().collect::<BTreeSet<_>>().len(), 3, "{set}");
    }
}

#[test]
fn a_credential_file_is_mounted_where_the_operator_looks_for_it() {
    let rendered = objects(&render(&["--values", "tests/full-values.yaml"]));
    let pod = pod(&rendered);
    let container = &pod["containers"][0];
    assert_eq!(
        pod["volumes"][0]["secret"]["secretName"],
        "google-credential"
    );
    let mount = &container["volumeMounts"][0];
    assert_eq!(mount["name"], pod["volumes"][0]["name"]);
    assert_eq!(mount["readOnly"], true);
    let env = container["env"].as_array().unwrap();
    let file = env
        .iter()
        .find(|e| e["name"] == "GOOGLE_APPLICATION_CREDENTIALS")
        .unwrap();
    let file = file["value"].as_str().unwrap();
    assert!(file.starts_with(mount["mountPath"].as_str().unwrap()));
    // The example in the chart's README is one as well.
    let readme = fs::read_to_string(repository("charts/run-invoker/README.md")).unwrap();
    let example = readme.split("```yaml\n").nth(1).unwrap();
    let example = example.split("```").next().unwrap();
    let values = std::env::temp_dir().join(format!("run-invoker-{}.yaml", std::process::id()));
    fs::write(&values, example).unwrap();
    let rendered = objects(&render(&["--values", values.to_str().unwrap()]));
    fs::remove_file(values).unwrap();
    let pod = super::values::pod(&rendered);
    assert_eq!(
        pod["volumes"][0]["projected"]["sources"][1]["serviceAccountToken"]["path"],
        "token"
    );
    assert_eq!(pod["containers"][0]["volumeMounts"][0]["name"], "google");
}

#[test]
fn security_contexts_can_be_changed_key_by_key() {
    let rendered = objects(&render(&[
        "--set",
        "podSecurityContext.runAsUser=null,podSecurityContext.runAsGroup=null",
        "--set",
        "podSecurityContext.fsGroup=7",
        "--set",
        "securityContext.runAsUser=1000",
    ]));
    let pod = pod(&rendered);
    assert_eq!(
        pod["securityContext"],
        json!({"runAsNonRoot": true, "fsGroup": 7, "seccompProfile": {"type": "RuntimeDefault"}})
    );
    assert_eq!(
        pod["containers"][0]["securityContext"],
        json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}, "runAsUser": 1000})
    );
}

#[test]
fn extra_objects_are_rendered_whether_text_or_object() {
    let rendered = objects(&render(&["--values", "tests/full-values.yaml"]));
    let named = |name: &str| {
        let mut maps = of_kind(&rendered, "ConfigMap");
        maps.find(|m| m["metadata"]["name"] == name).cloned()
    };
    let object = named("run-invoker-extra").unwrap();
    assert_eq!(object["metadata"]["namespace"], "platform");
    assert_eq!(object["data"]["a"], "b");
    assert!(named("run-invoker-text").is_some());
    let service = of_kind(&rendered, "Service").next().unwrap();
    assert_eq!(service["metadata"]["annotations"]["note"], "scrapes");
}

#[test]
fn what_artifact_hub_shows_is_true() {
    let chart = yaml("Chart.yaml");
    let note = |key: &str| chart["annotations"][format!("artifacthub.io/{key}")].as_str();
    let list = |key: &str| -> Vec<Value> { serde_saphyr::from_str(note(key).unwrap()).unwrap() };
    // https://artifacthub.io/docs/topics/annotations/helm/
    assert_eq!(note("license"), Some("Apache-2.0"));
    assert_eq!(note("operator"), Some("true"));
    assert_eq!(note("category"), Some("security"));
    assert_eq!(note("operatorCapabilities"), Some("Deep Insights"));
    let listed: BTreeSet<_> = list("crds")
        .iter()
        .map(|c| {
            assert!(!c["displayName"].is_null() && !c["description"].is_null());
            let text = |key: &str| c[key].as_str().unwrap().to_owned();
            (text("kind"), text("name"), text("version"))
        })
        .collect();
    let there: BTreeSet<_> = api::definitions()
        .into_iter()
        .map(|c| {
            let version = c.spec.versions[0].name.clone();
            (c.spec.names.kind.clone(), c.name_any(), version)
        })
        .collect();
    assert_eq!(listed, there);
    for example in list("crdsExamples") {
        match example["kind"].as_str().unwrap() {
            "InvokerPolicy" => drop(serde_json::from_value::<InvokerPolicy>(example).unwrap()),
            "InvokerGuardrail" => {
                drop(serde_json::from_value::<InvokerGuardrail>(example).unwrap());
            }
            other => panic!("{other}"),
        }
    }
    for link in list("links") {
        let url = link["url"].as_str().unwrap();
        let (_, file) = url.split_once("/blob/main/").unwrap();
        assert!(repository(file).exists(), "{url}");
    }
}

#[test]
fn the_readme_explains_every_value() {
    let readme = fs::read_to_string(repository("charts/run-invoker/README.md")).unwrap();
    let (_, table) = readme.split_once("| value | default | meaning |").unwrap();
    let rows: Vec<Vec<&str>> = table
        .lines()
        .filter(|l| l.starts_with("| `"))
        .map(|l| l.split(" | ").collect())
        .collect();
    assert!(rows.len() > 80, "{}", rows.len());
    for row in rows {
        assert!(row[2].trim_matches(['|', ' ']).len() > 4, "{row:?}");
    }
}
