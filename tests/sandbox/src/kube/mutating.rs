//! MutatingAdmissionPolicies: the JSON patches that they make of a request. Left out: parameters,
//! apply configurations, selectors of objects and namespaces, and variables; a policy that has one
//! of them refuses every request that it is about.
//!
//! Source: <https://kubernetes.io/docs/reference/access-authn-authz/mutating-admission-policy/>.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use cel::{
    Context, Env, ExecutionError, StructType,
    common::{
        types::{CelMap, CelMapKey, Type},
        value::{CowVal, Val},
    },
};
use serde_json::{Value, json};

use super::{registry::Resource, schema::to_cel, status::Refusal, store::Store};

/// A request as the policies see it.
#[derive(Debug)]
pub struct Request<'a> {
    pub resource: &'a Resource,
    pub user: &'a str,
    pub old: Option<&'a Value>,
}

/// `JSONPatch{op: ..., path: ..., value: ...}`.
struct JsonPatch(Type);

impl StructType for JsonPatch {
    fn get_type(&self) -> &Type {
        &self.0
    }

    fn new_value<'b, 'v>(
        &self,
        fields: BTreeMap<String, CowVal<'b, 'v>>,
    ) -> Result<Box<dyn Val + 'v>, ExecutionError> {
        if let Some(unknown) = fields
            .keys()
            .find(|f| !["op", "path", "from", "value"].contains(&f.as_str()))
        {
            return Err(ExecutionError::no_such_key(unknown));
        }
        let fields: HashMap<CelMapKey<'v>, Box<dyn Val + 'v>> = fields
            .into_iter()
            .map(|(name, value)| (name.into(), value.into_owned()))
            .collect();
        Ok(Box::new(CelMap::from(fields)))
    }
}

fn environment() -> Option<Arc<Env>> {
    let mut env = Env::stdlib();
    env.add_extension(cel::extensions::strings).ok()?;
    env.add_type(JsonPatch(Type::new_struct_type("JSONPatch")))
        .ok()?;
    Some(Arc::new(env))
}

/// The object as the policies that are bound make it.
///
/// # Errors
/// 422 with the policy that could not be carried out.
pub fn mutate(store: &Store, request: &Request<'_>, object: Value) -> Result<Value, Refusal> {
    let table = |plural: &str| ("admissionregistration.k8s.io".to_owned(), plural.to_owned());
    let bindings = store.list(&table("mutatingadmissionpolicybindings"), None);
    let mut object = object;
    for binding in bindings {
        let name = binding["spec"]["policyName"].as_str().unwrap_or_default();
        let key = (String::new(), name.to_owned());
        let Some(policy) = store.get(&table("mutatingadmissionpolicies"), &key) else {
            continue;
        };
        let spec = &policy["spec"];
        if !is_about(spec, request) {
            continue;
        }
        object = carry_out(spec, request, object).map_err(|why| {
            Refusal::new(
                422,
                "Invalid",
                format!("policy '{name}' with binding '{name}' denied request: {why}"),
            )
        })?;
    }
    Ok(object)
}

fn is_about(spec: &Value, request: &Request<'_>) -> bool {
    let operation = match request.old {
        None => "CREATE",
        Some(_) => "UPDATE",
    };
    let has = |list: &Value, wanted: &str| {
        let mut list = list.as_array().into_iter().flatten();
        list.any(|v| v == "*" || v == wanted)
    };
    let rules = spec["matchConstraints"]["resourceRules"].as_array();
    rules.into_iter().flatten().any(|rule| {
        has(&rule["apiGroups"], &request.resource.group)
            && has(&rule["apiVersions"], &request.resource.version)
            && has(&rule["operations"], operation)
            && has(&rule["resources"], &request.resource.plural)
    })
}

fn carry_out(spec: &Value, request: &Request<'_>, object: Value) -> Result<Value, String> {
    let constraints = &spec["matchConstraints"];
    let left_out = [
        &spec["paramKind"],
        &spec["variables"],
        &constraints["namespaceSelector"],
        &constraints["objectSelector"],
        &constraints["excludeResourceRules"],
    ];
    if left_out.iter().any(|part| !part.is_null()) {
        return Err("it has a part that the sandbox does not know".into());
    }
    let env = environment().ok_or("there is no environment")?;
    let evaluate = |expression: &Value, object: &Value| {
        let source = expression.as_str().ok_or("an expression is no text")?;
        let program = env.compile(source).map_err(|e| e.to_string())?;
        let mut context = Context::with_env(env.clone());
        let operation = request.old.map_or("CREATE", |_| "UPDATE");
        let asked = json!({"operation": operation, "userInfo": {"username": request.user, "groups": ["system:authenticated"]}});
        let old = request.old.cloned().unwrap_or_default();
        for (name, value) in [("object", object), ("oldObject", &old), ("request", &asked)] {
            context.add_variable_from_value(name, to_cel(value));
        }
        program.execute(&context).map_err(|e| e.to_string())
    };
    let conditions = spec["matchConditions"].as_array();
    for condition in conditions.into_iter().flatten() {
        match evaluate(&condition["expression"], &object)? {
            cel::Value::Bool(true) => {}
            cel::Value::Bool(false) => return Ok(object),
            other => return Err(format!("a condition is {other:?}")),
        }
    }
    let mut object = object;
    for mutation in spec["mutations"].as_array().into_iter().flatten() {
        let patch = evaluate(&mutation["jsonPatch"]["expression"], &object)?;
        let patch = patch.json().map_err(|e| e.to_string())?;
        let patch: json_patch::Patch = serde_json::from_value(patch).map_err(|e| e.to_string())?;
        json_patch::patch(&mut object, &patch).map_err(|e| e.to_string())?;
    }
    Ok(object)
}
