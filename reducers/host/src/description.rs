//! The rules that a module's description must keep.

use std::collections::BTreeSet;

use reducers_abi::Description;

use crate::LoadError;

/// The longest name of a reducer or parameter.
const NAME_BYTES_MAX: usize = 64;

/// Checks names (`[a-z_][a-z0-9_]*`, at most 64 bytes, unique) and versions (1, 2, 3, …).
pub(crate) fn check(description: &Description) -> Result<(), LoadError> {
    let wrong = |message: String| Err(LoadError::Description { message });
    let mut reducers = BTreeSet::new();
    for reducer in &description.reducers {
        if !is_name(&reducer.name) {
            return wrong(format!("a reducer is called {}", shown(&reducer.name)));
        }
        if !reducers.insert(&reducer.name) {
            return wrong(format!("two reducers are called `{}`", reducer.name));
        }
        let mut params = BTreeSet::new();
        for param in &reducer.params {
            if !is_name(&param.name) {
                return wrong(format!("a parameter of `{}` is called {}", reducer.name, shown(&param.name)));
            }
            if !params.insert(&param.name) {
                return wrong(format!("two parameters of `{}` are called `{}`", reducer.name, param.name));
            }
        }
    }
    for (found, expected) in description.migrations.iter().zip(1u32..) {
        if *found != expected {
            return wrong(format!(
                "migration {found} stands where {expected} should: versions go 1, 2, 3, …"
            ));
        }
    }
    Ok(())
}

fn is_name(name: &str) -> bool {
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b == b'_');
    let rest = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    first && rest && name.len() <= NAME_BYTES_MAX
}

/// A bad name, made safe to print.
fn shown(name: &str) -> String {
    let short: String = name.chars().take(NAME_BYTES_MAX).collect();
    format!("{short:?}; names are lower-case ASCII letters, digits and `_`, at most {NAME_BYTES_MAX} long")
}

#[cfg(test)]
mod tests {
    use reducers_abi::{Param, Reducer, Type};

    use super::*;

    fn described(names: &[&str], params: &[&str], migrations: &[u32]) -> Description {
        let params: Vec<Param> =
            params.iter().map(|p| Param { name: (*p).into(), ty: Type::Text, optional: false }).collect();
        let reducers = names
            .iter()
            .map(|n| Reducer { name: (*n).into(), params: params.clone(), doc: String::new() })
            .collect();
        Description { reducers, migrations: migrations.to_vec() }
    }

    #[test]
    fn rules_are_enforced() {
        let long = "a".repeat(65);
        assert_eq!(check(&described(&["a_1", "_b"], &["x", "y"], &[1, 2, 3])), Ok(()));
        assert_eq!(check(&described(&[], &[], &[])), Ok(()));
        for (names, params, migrations) in [
            (vec!["Add"], vec![], vec![]),
            (vec![""], vec![], vec![]),
            (vec!["1a"], vec![], vec![]),
            (vec!["../x"], vec![], vec![]),
            (vec!["%s"], vec![], vec![]),
            (vec![long.as_str()], vec![], vec![]),
            (vec!["a", "a"], vec![], vec![]),
            (vec!["a"], vec!["x", "x"], vec![]),
            (vec!["a"], vec!["é"], vec![]),
            (vec![], vec![], vec![2]),
            (vec![], vec![], vec![0, 1]),
            (vec![], vec![], vec![1, 1]),
            (vec![], vec![], vec![1, 3]),
        ] {
            let found = check(&described(&names, &params, &migrations));
            assert!(
                matches!(found, Err(LoadError::Description { .. })),
                "{names:?} {params:?} {migrations:?}"
            );
        }
    }
}
