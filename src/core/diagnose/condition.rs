//! IAM conditions, evaluated for one request.

use jiff::{Timestamp, tz::TimeZone};
use kube::core::cel::cel::{
    Context, ExecutionError, Program, Value,
    extractors::{Arguments, This},
};

/// What a condition comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Truth {
    True,
    False,
    /// It depends on what is not known here.
    Unknown(String),
}

/// Evaluates a condition over `request.time`, `request.path` and `request.host`.
///
/// Source: <https://docs.cloud.google.com/iam/docs/conditions-attribute-reference>.
pub fn evaluate(expression: &str, at: Timestamp, url: Option<&str>) -> Truth {
    // The parser of the evaluator is not made for expressions without end.
    if expression.len() > 4096 {
        return Truth::Unknown("it is too long".into());
    }
    let program = match Program::compile(expression) {
        Ok(program) => program,
        Err(e) => return Truth::Unknown(format!("it cannot be read: {e}")),
    };
    let mut context = Context::default();
    add_time_functions(&mut context);
    let now = format!("timestamp(\"{}\")", at.strftime("%Y-%m-%dT%H:%M:%SZ"));
    let Some(time) = Program::compile(&now)
        .ok()
        .and_then(|p| p.execute(&context).ok())
    else {
        return Truth::Unknown("the time cannot be written".into());
    };
    let mut request = std::collections::HashMap::from([("time".to_owned(), time)]);
    if let Some(url) = url {
        let (host, path) = super::address::host_and_path(url);
        request.insert("host".into(), Value::from(host));
        request.insert("path".into(), Value::from(path));
    }
    context.add_variable_from_value("request", request);
    match program.execute(&context) {
        Ok(Value::Bool(true)) => Truth::True,
        Ok(Value::Bool(false)) => Truth::False,
        Ok(other) => Truth::Unknown(format!(
            "it gives {:?}, neither true nor false",
            other.type_of()
        )),
        Err(e) => Truth::Unknown(e.to_string()),
    }
}

/// The accessors of times take a time zone; the evaluator's own know UTC only.
fn add_time_functions(context: &mut Context<'_>) {
    macro_rules! accessor {
        ($name:literal, $of:expr) => {
            context.add_function(
                $name,
                |This(this): This<Value>,
                 Arguments(args): Arguments|
                 -> Result<i64, ExecutionError> {
                    let error = |why: String| ExecutionError::function_error($name, why);
                    let Value::Timestamp(time) = this else {
                        return Err(error("only of a time".into()));
                    };
                    let zone = match args.first() {
                        None => TimeZone::UTC,
                        Some(Value::String(name)) => {
                            TimeZone::get(name).map_err(|e| error(e.to_string()))?
                        }
                        Some(_) => return Err(error("a time zone is a text".into())),
                    };
                    let time = Timestamp::from_second(time.timestamp())
                        .map_err(|e| error(e.to_string()))?
                        .to_zoned(zone);
                    let of: fn(&jiff::Zoned) -> i64 = $of;
                    Ok(of(&time))
                },
            );
        };
    }
    accessor!("getFullYear", |t| i64::from(t.year()));
    accessor!("getMonth", |t| i64::from(t.month()) - 1);
    accessor!("getDate", |t| i64::from(t.day()));
    accessor!("getDayOfMonth", |t| i64::from(t.day()) - 1);
    accessor!("getDayOfYear", |t| i64::from(t.day_of_year()) - 1);
    accessor!("getDayOfWeek", |t| i64::from(
        t.weekday().to_sunday_zero_offset()
    ));
    accessor!("getHours", |t| i64::from(t.hour()));
    accessor!("getMinutes", |t| i64::from(t.minute()));
    accessor!("getSeconds", |t| i64::from(t.second()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_as_iam_documents_them() {
        let at: Timestamp = "2026-11-24T16:30:00Z".parse().unwrap();
        let url = Some("https://web.example.com/api/items?x=1");
        for (expression, truth) in [
            (
                "request.time < timestamp(\"2027-01-01T00:00:00Z\")",
                Some(true),
            ),
            (
                "request.time < timestamp(\"2026-11-24T16:30:00Z\")",
                Some(false),
            ),
            (
                "request.time.getHours('Europe/Berlin') == 17 && request.time.getHours() == 16",
                Some(true),
            ),
            (
                "request.time.getDayOfWeek(\"America/New_York\") == 2",
                Some(true),
            ),
            (
                "request.time.getMonth() == 10 && request.time.getDate() == 24",
                Some(true),
            ),
            (
                "request.path.startsWith('/api/') && request.host == 'web.example.com'",
                Some(true),
            ),
            ("request.path == '/api/items'", Some(true)),
            (
                "request.time > timestamp('2027-01-01T00:00:00Z') || request.path.endsWith('/items')",
                Some(true),
            ),
            ("resource.name == 'x'", None),
            ("request.time.getHours('Mars/Base') == 1", None),
            ("1 + 1", None),
            ("((", None),
        ] {
            let found = evaluate(expression, at, url);
            match truth {
                Some(true) => assert_eq!(found, Truth::True, "{expression}"),
                Some(false) => assert_eq!(found, Truth::False, "{expression}"),
                None => assert!(
                    matches!(found, Truth::Unknown(_)),
                    "{expression}: {found:?}"
                ),
            }
        }
        assert!(matches!(
            evaluate("request.path == '/'", at, None),
            Truth::Unknown(_)
        ));
    }
}
