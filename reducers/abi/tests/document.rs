//! The worked examples of `docs/reducer-abi.md` are what the codec writes and reads.

use std::collections::BTreeMap;

use reducers_abi::codec::*;
use reducers_abi::{Call, Description, Entry, Failure, Param, Reducer, Rows, SqlError, Type, Value};

const DOCUMENT: &str = include_str!("../../../docs/reducer-abi.md");

/// The bytes of each block that opens with "```hex NAME".
fn examples() -> BTreeMap<&'static str, Vec<u8>> {
    let mut examples = BTreeMap::new();
    let mut lines = DOCUMENT.lines();
    while let Some(line) = lines.next() {
        let Some(name) = line.strip_prefix("```hex ") else { continue };
        let mut bytes = Vec::new();
        for line in lines.by_ref().take_while(|line| *line != "```") {
            let (hex, _meaning) =
                line.split_once('|').unwrap_or_else(|| panic!("{name}: no bar in {line:?}"));
            let parsed = hex.split_whitespace().map(|pair| u8::from_str_radix(pair, 16));
            bytes.extend(parsed.map(|byte| byte.unwrap_or_else(|error| panic!("{name}: {line:?}: {error}"))));
        }
        assert!(examples.insert(name, bytes).is_none(), "two examples are called {name}");
    }
    examples
}

#[test]
fn the_documents_examples_are_true() {
    let mut examples = examples();
    let mut bytes = |name: &str| examples.remove(name).unwrap_or_else(|| panic!("no example called {name}"));

    let param = |name: &str, ty, optional| Param { name: name.into(), ty, optional };
    let description = Description {
        reducers: vec![Reducer {
            name: "set_done".into(),
            doc: "Tick.".into(),
            params: vec![
                param("id", Type::Text, false),
                param("done", Type::Boolean, false),
                param("note", Type::Text, true),
            ],
        }],
        migrations: vec![1],
    };
    let example = bytes("description");
    assert_eq!(encode_description(&description), example);
    assert_eq!(decode_description(&example).unwrap(), description);

    let args = [Value::Text("t1".into()), Value::Integer(1), Value::Null];
    let entry = Entry::Reducer { name: "set_done", args: &args };
    let call = Call { entry, user: "ada", now_ms: 1_704_067_200_000, seed: 42 };
    let example = bytes("call");
    assert_eq!(encode_call(&call), example);
    assert_eq!(decode_call(&example).unwrap().as_call(), call);

    let call = Call { entry: Entry::Migration { version: 1 }, user: "", now_ms: 0, seed: 0 };
    let example = bytes("migration");
    assert_eq!(encode_call(&call), example);
    assert_eq!(decode_call(&example).unwrap().as_call(), call);

    let values = [Value::Real(1.5), Value::Blob(vec![0, 255]), Value::Integer(-1)];
    let example = bytes("values");
    assert_eq!(encode_values(&values), example);
    assert_eq!(decode_values(&example).unwrap(), values);

    assert_eq!(encode_changes(&Ok(2)), bytes("changes"));
    assert_eq!(encode_changes(&Err(SqlError { code: 1555, message: "nope".into() })), bytes("failed"));

    let rows = Rows {
        columns: vec!["id".into(), "n".into()],
        rows: vec![vec![Value::Text("t1".into()), Value::Null]],
    };
    let example = bytes("rows");
    assert_eq!(encode_rows(&Ok(rows.clone())), example);
    assert_eq!(decode_rows(&example).unwrap().unwrap(), rows);

    assert_eq!(encode_outcome(&Err(Failure::Refused { message: "no".into() })), bytes("refused"));
    assert!(examples.is_empty(), "examples that no test checks: {:?}", examples.keys());
}

/// The type tags of the document's table, one by one.
#[test]
fn the_documents_type_tags_are_true() {
    let types = [Type::Text, Type::Integer, Type::Real, Type::Boolean, Type::Blob, Type::Json];
    let words = ["text", "integer", "real", "boolean", "blob", "any JSON value"];
    for ((tag, ty), word) in types.into_iter().enumerate().zip(words) {
        let param = Param { name: String::new(), ty, optional: false };
        let reducer = Reducer { name: String::new(), params: vec![param], doc: String::new() };
        let bytes = encode_description(&Description { reducers: vec![reducer], migrations: vec![] });
        assert_eq!(usize::from(bytes[bytes.len() - 6]), tag, "{ty:?}");
        assert!(DOCUMENT.contains(&format!("\n| {tag} | {word} |")), "{tag} {word}");
    }
}
