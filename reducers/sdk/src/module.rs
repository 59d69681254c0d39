//! What `module!` gathers, and how an entry is found and run in it. The same on wasm and natively.

use reducers_abi::{Call, Description, Entry, Failure, Param, Reducer, Sql, Type, Value, codec};

use crate::argument::Argument;
use crate::{Ctx, Error};

/// A module: its migrations and reducers. [`module!`](crate::module!) makes one, called `MODULE`.
#[derive(Debug)]
pub struct Module {
    migrations: &'static [MigrationDef],
    reducers: &'static [ReducerDef],
}

/// What `#[reducer]` says of a function.
#[doc(hidden)]
#[derive(Debug)]
pub struct ReducerDef {
    pub name: &'static str,
    pub doc: &'static str,
    pub params: &'static [ParamDef],
    pub run: fn(&mut Ctx<'_>, Args) -> Result<(), Error>,
}

/// What `#[migration]` says of a function.
#[doc(hidden)]
#[derive(Debug)]
pub struct MigrationDef {
    pub version: u32,
    pub run: fn(&mut Ctx<'_>) -> Result<(), Error>,
}

/// One parameter of a reducer.
#[doc(hidden)]
#[derive(Debug)]
pub struct ParamDef {
    name: &'static str,
    ty: Type,
    optional: bool,
}

impl ParamDef {
    pub const fn of<T: Argument>(name: &'static str) -> ParamDef {
        ParamDef { name, ty: T::TYPE, optional: T::OPTIONAL }
    }
}

/// The arguments of one run, taken in order.
#[doc(hidden)]
#[derive(Debug)]
pub struct Args(std::vec::IntoIter<Value>);

impl Args {
    pub fn next<T: Argument>(&mut self, name: &str) -> Result<T, Error> {
        T::from_value(self.0.next().unwrap_or(Value::Null))
            .map_err(|mismatch| Error::new(format!("argument `{name}`: {mismatch}")))
    }
}

impl Module {
    /// For `module!`: checked while compiling.
    #[doc(hidden)]
    pub const fn new(migrations: &'static [MigrationDef], reducers: &'static [ReducerDef]) -> Module {
        let mut i = 0;
        while i < migrations.len() {
            if migrations[i].version as usize != i + 1 {
                panic!("list migrations in the order of their versions: 1, 2, 3, … without gaps");
            }
            i += 1;
        }
        let mut i = 0;
        while i < reducers.len() {
            let mut j = 0;
            while j < i {
                if same(reducers[i].name, reducers[j].name) {
                    panic!("two reducers of the module have one name");
                }
                j += 1;
            }
            i += 1;
        }
        Module { migrations, reducers }
    }

    /// What the module says of itself.
    pub fn description(&self) -> Description {
        let reducers = self.reducers.iter().map(|def| Reducer {
            name: def.name.to_owned(),
            doc: def.doc.to_owned(),
            params: def
                .params
                .iter()
                .map(|p| Param { name: p.name.to_owned(), ty: p.ty, optional: p.optional })
                .collect(),
        });
        Description {
            reducers: reducers.collect(),
            migrations: self.migrations.iter().map(|def| def.version).collect(),
        }
    }

    /// Runs one entry to its end. A panic goes through; [`Native`](crate::Native) turns it into a
    /// failure, and on wasm it is a trap.
    pub(crate) fn run(&self, call: &Call<'_>, sql: &mut dyn Sql) -> Result<(), Failure> {
        let mut ctx = Ctx::new(call, sql);
        let outcome = match call.entry {
            Entry::Reducer { name, args } => {
                let Some(def) = self.reducers.iter().find(|def| def.name == name) else {
                    return Err(Failure::Unknown { entry: format!("reducer `{name}`") });
                };
                if args.len() != def.params.len() {
                    let (takes, given) = (def.params.len(), args.len());
                    let message = format!("{name} takes {takes} arguments, and {given} were given");
                    return Err(Failure::Refused { message });
                }
                let args: Vec<Value> = args.iter().cloned().map(codec::canonical).collect();
                (def.run)(&mut ctx, Args(args.into_iter()))
            }
            Entry::Migration { version } => {
                let Some(def) = self.migrations.iter().find(|def| def.version == version) else {
                    return Err(Failure::Unknown { entry: format!("migration {version}") });
                };
                (def.run)(&mut ctx)
            }
        };
        outcome.map_err(|error| Failure::Refused { message: error.to_string() })
    }
}

const fn same(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len() != b.len() {
        return false;
    }
    let mut i = 0;
    while i < a.len() {
        if a[i] != b[i] {
            return false;
        }
        i += 1;
    }
    true
}
