//! A mutation's JSON arguments as the values that its reducer takes.

use reducers_abi::{Param, Reducer, Type, Value};
use serde_json::{Map, Value as Json};

use crate::value;

/// Arguments do not fit the reducer. The message names the argument and what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reducer}: {problem}; it takes {}", signature(.takes))]
pub(super) struct BadArguments {
    reducer: String,
    problem: String,
    takes: Vec<Param>,
}

fn signature(params: &[Param]) -> String {
    let params: Vec<String> = params
        .iter()
        .map(|p| format!("{}{}: {}", p.name, if p.optional { "?" } else { "" }, type_name(p.ty)))
        .collect();
    format!("{{{}}}", params.join(", "))
}

fn type_name(ty: Type) -> &'static str {
    match ty {
        Type::Text => "string",
        Type::Integer => "integer",
        Type::Real => "number",
        Type::Boolean => "boolean",
        Type::Blob => "blob",
        Type::Json => "any JSON",
    }
}

/// One value for each parameter, in their order.
pub(super) fn bind(reducer: &Reducer, args: &Map<String, Json>) -> Result<Vec<Value>, BadArguments> {
    let bad = |problem: String| BadArguments {
        reducer: reducer.name.clone(),
        problem,
        takes: reducer.params.clone(),
    };
    if let Some(unknown) = args.keys().find(|name| reducer.params.iter().all(|p| p.name != **name)) {
        return Err(bad(format!("unknown argument `{unknown}`")));
    }
    let value = |param: &Param| match args.get(&param.name) {
        None | Some(Json::Null) if param.optional => Ok(Value::Null),
        None => Err(bad(format!("missing argument `{}`", param.name))),
        Some(json) => convert(param.ty, json).ok_or_else(|| {
            bad(format!("argument `{}` should be {}, not {}", param.name, article(param.ty), kind(json)))
        }),
    };
    reducer.params.iter().map(value).collect()
}

fn article(ty: Type) -> String {
    match ty {
        Type::Integer => "an integer".into(),
        Type::Blob => "a blob ({\"$blob\": \"base64\"})".into(),
        Type::Json => "any JSON".into(),
        Type::Text | Type::Real | Type::Boolean => format!("a {}", type_name(ty)),
    }
}

fn kind(json: &Json) -> &'static str {
    match json {
        Json::Null => "null",
        Json::Bool(_) => "a boolean",
        Json::Number(n) if n.is_f64() => "a number with a fraction",
        Json::Number(_) => "an integer",
        Json::String(_) => "a string",
        Json::Array(_) => "an array",
        Json::Object(_) => "an object",
    }
}

fn convert(ty: Type, json: &Json) -> Option<Value> {
    if ty == Type::Json {
        return Some(Value::Text(json.to_string()));
    }
    match (ty, value::from_json(json).ok()?) {
        (Type::Boolean, value @ Value::Integer(_)) if json.is_boolean() => Some(value),
        (Type::Integer, value @ Value::Integer(_)) if !json.is_boolean() => Some(value),
        // A reader of doubles may write 1.0 for 1.
        (Type::Integer, Value::Real(r)) if r.fract() == 0.0 && r.abs() < 9.0e15 => {
            Some(Value::Integer(r as i64))
        }
        (Type::Real, value @ Value::Real(_)) => Some(value),
        (Type::Real, Value::Integer(i)) if !json.is_boolean() => Some(Value::Real(i as f64)),
        (Type::Text, value @ Value::Text(_)) => Some(value),
        (Type::Blob, value @ Value::Blob(_)) => Some(value),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn arguments_are_checked_by_name_and_type() {
        let param = |name: &str, ty, optional| Param { name: name.into(), ty, optional };
        let reducer = Reducer {
            name: "r".into(),
            params: vec![
                param("t", Type::Text, false),
                param("b", Type::Boolean, false),
                param("n", Type::Integer, true),
                param("x", Type::Real, true),
                param("j", Type::Json, true),
            ],
            doc: String::new(),
        };
        let bind = |json: Json| bind(&reducer, json.as_object().unwrap()).map_err(|e| e.to_string());
        let full = bind(json!({"t": "a", "b": true, "n": 2.0, "x": 3, "j": {"a": [1]}})).unwrap();
        let text = |text: &str| Value::Text(text.into());
        assert_eq!(
            full,
            [text("a"), Value::Integer(1), Value::Integer(2), Value::Real(3.0), text(r#"{"a":[1]}"#)]
        );
        assert_eq!(bind(json!({"t": "a", "b": false, "n": null})).unwrap()[2], Value::Null);
        for (wrong, part) in [
            (json!({"b": true}), "missing argument `t`"),
            (json!({"t": 5, "b": true}), "`t` should be a string, not an integer"),
            (json!({"t": "a", "b": 1}), "`b` should be a boolean"),
            (
                json!({"t": "a", "b": true, "n": 1.5}),
                "`n` should be an integer, not a number with a fraction",
            ),
            (json!({"t": "a", "b": true, "n": true}), "not a boolean"),
            (json!({"t": "a", "b": true, "%s": 1}), "unknown argument `%s`"),
            (json!({"t": null, "b": true}), "not null"),
        ] {
            let error = bind(wrong).unwrap_err();
            assert!(error.contains(part) && error.contains("{t: string, b: boolean, n?: integer"), "{error}");
        }
    }
}
