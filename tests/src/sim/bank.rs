//! The app of the simulation: accounts, append-only lists, counters, notes. A native module.
//!
//! Its reducers fail in every way that there is: refused by the app, by a constraint after half of the
//! work is done, by `OR ROLLBACK`, by a deferred foreign key, by a trap. What holds in every state:
//! balances are never negative and add up to [`TOTAL`], and a list's positions are 1, 2, 3….

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use graft::ModuleHash;
use parking_lot::Mutex;
use reducers_abi::{Call, Description, Entry, Failure, Param, Reducer, Runtime, Sql, SqlError, Type, Value};
use serde_json::{Map, Value as Json, json};
use sqlsync_layer::actor::{ModuleError, Modules};
use sqlsync_layer::value::Params;

use super::random::Random;

/// Accounts, numbered from 1.
const ACCOUNTS: u64 = 6;

/// What all balances add up to.
pub const TOTAL: i64 = ACCOUNTS as i64 * 100;

/// Lists, numbered from 1.
const LISTS: u64 = 3;

/// Woven lists, numbered from 1: each a table of its own, so that work on two may merge.
pub const WOVEN: u64 = 4;

/// What a direct writer runs now and then: moves every page, changes no content.
pub const VACUUM: &str = "vacuum";

/// The newest version of the module.
pub const VERSION_MAX: u32 = 2;

/// What a version's object would be called.
pub fn module(version: u32) -> ModuleHash {
    let mut hash = [0xBA; 32];
    hash[..4].copy_from_slice(&version.to_le_bytes());
    ModuleHash(hash)
}

/// The version that a hash names.
pub fn version(module: ModuleHash) -> Option<u32> {
    (1..=VERSION_MAX).find(|version| self::module(*version) == module)
}

/// The module at one version.
#[derive(Debug)]
pub struct Bank {
    description: Description,
    /// Runs so far, where runs are to differ (a plant).
    impure: Option<AtomicI64>,
}

impl Bank {
    /// The module as `version` has it.
    pub fn new(version: u32, impure: bool) -> Bank {
        let mut reducers = vec![
            reducer("transfer", &[("from", Type::Integer), ("to", Type::Integer), ("amount", Type::Integer)]),
            reducer("overdraw", &[("from", Type::Integer), ("to", Type::Integer), ("amount", Type::Integer)]),
            reducer("append", &[("list", Type::Integer), ("tag", Type::Integer)]),
            reducer("count", &[("name", Type::Text), ("by", Type::Integer)]),
            reducer("note", &[("key", Type::Text), ("body", Type::Text)]),
            reducer("forget", &[("key", Type::Text)]),
            reducer("member", &[("account", Type::Integer)]),
            reducer("bail", &[("account", Type::Integer)]),
            reducer("shrug", &[("account", Type::Integer)]),
            reducer("trap", &[("name", Type::Text)]),
            reducer("weave", &[("from", Type::Integer), ("to", Type::Integer), ("tag", Type::Integer)]),
        ];
        if version >= 2 {
            reducers.push(reducer("star", &[("key", Type::Text)]));
        }
        let description = Description { reducers, migrations: (1..=version).collect() };
        Bank { description, impure: impure.then(AtomicI64::default) }
    }
}

fn reducer(name: &str, params: &[(&str, Type)]) -> Reducer {
    let param = |(name, ty): &(&str, Type)| Param { name: (*name).into(), ty: *ty, optional: false };
    Reducer { name: name.into(), params: params.iter().map(param).collect(), doc: String::new() }
}

fn refused(message: impl Into<String>) -> Failure {
    Failure::Refused { message: message.into() }
}

fn sql(error: SqlError) -> Failure {
    refused(error.message)
}

impl Runtime for Bank {
    fn description(&self) -> &Description {
        &self.description
    }

    fn run(&self, call: &Call<'_>, db: &mut dyn Sql) -> Result<(), Failure> {
        let impurity = self.impure.as_ref().map_or(0, |runs| runs.fetch_add(1, Ordering::Relaxed));
        match call.entry {
            Entry::Migration { version } => migrate(version, db),
            Entry::Reducer { name, args } => run(name, args, call, impurity, db),
        }
    }
}

fn migrate(version: u32, db: &mut dyn Sql) -> Result<(), Failure> {
    let statements: &[&str] = match version {
        1 => &[
            "create table accounts(id integer primary key, balance integer not null check(balance >= 0))",
            "create table entries(id integer primary key, list integer not null, position integer not null, \
             author text not null, tag integer not null, at integer not null, noise integer not null)",
            "create table counters(name text primary key, n integer not null)",
            "create table notes(key text primary key, body text not null) without rowid",
            "create table members(id integer primary key, \
             account integer not null references accounts(id) deferrable initially deferred)",
            "create table direct(id integer primary key, what text)",
            "create index direct_what on direct(what)",
            "create table woven1(position integer primary key, tag integer, saw integer, n integer, last integer, pad text)",
            "create table woven2(position integer primary key, tag integer, saw integer, n integer, last integer, pad text)",
            "create table woven3(position integer primary key, tag integer, saw integer, n integer, last integer, pad text)",
            "create table woven4(position integer primary key, tag integer, saw integer, n integer, last integer, pad text)",
        ],
        2 => &[
            "alter table notes add column stars integer not null default 0",
            "create unique index entries_place on entries(list, position)",
        ],
        _ => return Err(Failure::Unknown { entry: format!("migration {version}") }),
    };
    for statement in statements {
        db.execute(statement, &[]).map_err(sql)?;
    }
    if version == 1 {
        for id in 1..=ACCOUNTS {
            db.execute("insert into accounts values(?1, 100)", &[Value::Integer(id as i64)]).map_err(sql)?;
        }
    }
    Ok(())
}

fn run(name: &str, args: &[Value], call: &Call<'_>, impurity: i64, db: &mut dyn Sql) -> Result<(), Failure> {
    const CREDIT: &str = "update accounts set balance = balance + ?2 where id = ?1";
    const DEBIT: &str = "update accounts set balance = balance - ?2 where id = ?1";
    match (name, args) {
        ("transfer", [from, to, amount @ Value::Integer(_)]) => {
            let found = db
                .query(
                    "select (select balance from accounts where id = ?1) >= ?3, count(*) from accounts where id in (?1, ?2)",
                    &[from.clone(), to.clone(), amount.clone()],
                )
                .map_err(sql)?;
            match found.rows.first().map(Vec::as_slice) {
                Some([Value::Integer(1), Value::Integer(2)]) => {}
                Some(_) | None => return Err(refused("not enough money, or no such account")),
            }
            db.execute(DEBIT, &[from.clone(), amount.clone()]).map_err(sql)?;
            db.execute(CREDIT, &[to.clone(), amount.clone()]).map_err(sql)?;
            Ok(())
        }
        // The other way round, so that the constraint fails when half is done.
        ("overdraw", [from, to, amount]) => {
            if db.execute(CREDIT, &[to.clone(), amount.clone()]).map_err(sql)? != 1 {
                return Err(refused("no such account"));
            }
            if db.execute(DEBIT, &[from.clone(), amount.clone()]).map_err(sql)? != 1 {
                return Err(refused("no such account, found too late"));
            }
            Ok(())
        }
        ("append", [list, tag]) => db
            .execute(
                "insert into entries(list, position, author, tag, at, noise) \
                 select ?1, coalesce(max(position), 0) + 1, ?2, ?3, ?4, random() & 255 from entries where list = ?1",
                &[list.clone(), Value::Text(call.user.into()), tag.clone(), Value::Integer(call.now_ms)],
            )
            .map(drop)
            .map_err(sql),
        ("count", [name, Value::Integer(by)]) => db
            .execute(
                "insert into counters values(?1, ?2) on conflict(name) do update set n = n + excluded.n",
                &[name.clone(), Value::Integer(by + impurity)],
            )
            .map(drop)
            .map_err(sql),
        ("note", [key, body]) => db
            .execute("insert or replace into notes(key, body) values(?1, ?2)", &[key.clone(), body.clone()])
            .map(drop)
            .map_err(sql),
        ("forget", [key]) => match db.execute("delete from notes where key = ?1", std::slice::from_ref(key)).map_err(sql)? {
            0 => Err(refused("there is no such note")),
            _ => Ok(()),
        },
        ("star", [key]) => {
            db.execute("update notes set stars = stars + 1 where key = ?1", std::slice::from_ref(key)).map(drop).map_err(sql)
        }
        // An account that does not exist is found at the end of the mutation only.
        ("member", [account]) => {
            db.execute("insert into members(account) values(?1)", std::slice::from_ref(account)).map(drop).map_err(sql)
        }
        // SQLite ends the whole transaction, with everything before it in the batch.
        ("bail" | "shrug", [account]) => {
            db.execute(CREDIT, &[account.clone(), Value::Integer(5)]).map_err(sql)?;
            let ended = db.execute("insert or rollback into accounts values(1, 100)", &[]);
            let after = db.execute(CREDIT, &[account.clone(), Value::Integer(7)]);
            if name == "shrug" { Ok(()) } else { ended.and(after).map(drop).map_err(sql) }
        }
        ("trap", [name]) => {
            db.execute("insert or replace into counters values(?1, -1)", std::slice::from_ref(name)).map_err(sql)?;
            Err(Failure::Trap { message: "simulated trap".into() })
        }
        // Reads the end of one list and appends to another, with what it read: the entry shows both.
        ("weave", [Value::Integer(from), Value::Integer(to), tag]) => {
            let in_range = |list: &i64| (1..=WOVEN as i64).contains(list);
            if !in_range(from) || !in_range(to) || from == to {
                return Err(refused("no such list"));
            }
            let end = format!("select position, tag from woven{from} order by position desc limit 1");
            let seen = db.query(&end, &[]).map_err(sql)?;
            let (n, last) = match seen.rows.first().map(Vec::as_slice) {
                Some([n, last]) => (n.clone(), last.clone()),
                Some(_) | None => (Value::Integer(0), Value::Integer(0)),
            };
            let append = format!(
                "insert into woven{to} select coalesce(max(position), 0) + 1, ?1, ?2, ?3, ?4, 'a thread of the cloth, sixty bytes or so, so that pages fill' from woven{to}"
            );
            db.execute(&append, &[tag.clone(), Value::Integer(*from), n, last]).map(drop).map_err(sql)
        }
        _ => Err(Failure::Unknown { entry: name.into() }),
    }
}

/// Binds JSON arguments as the values of a reducer, on its own and more strictly than the product:
/// `None` where they do not fit. The mutations made here are either right or plainly wrong.
pub fn bind(reducer: &Reducer, args: &Map<String, Json>) -> Option<Vec<Value>> {
    if args.len() != reducer.params.len() {
        return None;
    }
    let value = |param: &Param| match (param.ty, args.get(&param.name)?) {
        (Type::Integer, Json::Number(n)) => n.as_i64().map(Value::Integer),
        (Type::Text, Json::String(text)) => Some(Value::Text(text.clone())),
        _ => None,
    };
    reducer.params.iter().map(value).collect()
}

/// A random mutation. `tag` tells appends apart.
pub fn random_mutation(random: &mut Random, tag: u64) -> (String, Map<String, Json>) {
    // Now and then an account that does not exist.
    let account = |random: &mut Random| {
        let stranger = random.chance(0.1);
        if stranger { ACCOUNTS + 1 } else { random.between(1, ACCOUNTS) }
    };
    let key = |random: &mut Random| format!("k{}", random.below(20));
    let (name, args) = match random.below(100) {
        0..25 => {
            let (from, to) = (account(random), account(random));
            ("transfer", json!({"from": from, "to": to, "amount": random.between(1, 60)}))
        }
        25..35 => {
            let (from, to) = (account(random), account(random));
            ("overdraw", json!({"from": from, "to": to, "amount": random.between(1, 200)}))
        }
        35..48 => ("append", json!({"list": random.between(1, LISTS), "tag": tag})),
        48..58 => {
            let from = random.between(1, WOVEN);
            let to = (from + random.below(WOVEN - 1)) % WOVEN + 1;
            ("weave", json!({"from": from, "to": to, "tag": tag}))
        }
        58..68 => ("count", json!({"name": format!("c{}", random.below(4)), "by": random.between(1, 9)})),
        68..78 => {
            let body = "lorem ipsum ".repeat(random.below(120) as usize);
            ("note", json!({"key": key(random), "body": format!("{tag} {body}")}))
        }
        78..83 => ("forget", json!({"key": key(random)})),
        83..89 => ("member", json!({"account": account(random)})),
        89..91 => ("bail", json!({"account": account(random)})),
        91..92 => ("shrug", json!({"account": account(random)})),
        92..94 => ("trap", json!({"name": format!("c{}", random.below(4))})),
        94..96 => ("no_such_reducer", json!({})),
        96..97 => ("append", json!({"list": "one", "tag": tag})),
        97..98 => ("append", json!({"list": 1})),
        _ => ("star", json!({"key": key(random)})),
    };
    let args = match args {
        Json::Object(args) => args,
        _ => Map::new(),
    };
    (name.into(), args)
}

/// A query that clients ask and subscribe to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ask {
    /// Every balance.
    Accounts,
    /// Their number and sum.
    Total,
    /// One list, in order.
    List(u64),
    /// Every counter.
    Counters,
    /// The first notes with all columns, however many there are.
    Notes,
    /// How many entries each author has: rows move as counts change.
    Ranking,
    /// Members with their accounts: two tables.
    Members,
    /// Every woven list.
    Woven,
}

impl Ask {
    /// One of them.
    pub fn random(random: &mut Random) -> Ask {
        match random.below(10) {
            0 => Ask::Accounts,
            1 => Ask::Total,
            2 | 3 => Ask::List(random.between(1, LISTS)),
            4 => Ask::Counters,
            5 => Ask::Notes,
            6 => Ask::Ranking,
            7 => Ask::Members,
            _ => Ask::Woven,
        }
    }

    /// Its SELECT.
    pub fn sql(self) -> &'static str {
        match self {
            Ask::Accounts => "select id, balance from accounts order by id",
            Ask::Total => "select count(*) as n, sum(balance) as total from accounts",
            Ask::List(_) => {
                "select position, author, tag, at, noise from entries where list = ?1 order by position"
            }
            Ask::Counters => "select name, n from counters order by name",
            Ask::Notes => "select * from notes order by key limit 8",
            Ask::Ranking => {
                "select author, count(*) as n from entries group by author order by n desc, author"
            }
            Ask::Members => {
                "select account as id, count(*) as n, min(balance) as balance \
                 from members join accounts on accounts.id = account group by account order by account"
            }
            Ask::Woven => {
                "select * from (select 1 as list, position, tag, saw, n, last from woven1 \
                 union all select 2, position, tag, saw, n, last from woven2 \
                 union all select 3, position, tag, saw, n, last from woven3 \
                 union all select 4, position, tag, saw, n, last from woven4) order by list, position"
            }
        }
    }

    /// Its parameters.
    pub fn params(self) -> Params {
        match self {
            Ask::List(list) => Params::Positional(vec![json!(list)]),
            _ => Params::default(),
        }
    }

    /// The key that a subscription names.
    pub fn key(self) -> Option<Vec<String>> {
        match self {
            Ask::Accounts | Ask::Total | Ask::Members | Ask::Woven => None,
            Ask::List(_) => Some(vec!["position".into()]),
            Ask::Counters => Some(vec!["name".into()]),
            Ask::Notes => Some(vec!["key".into()]),
            Ask::Ranking => Some(vec!["author".into()]),
        }
    }

    /// What holds in every state, whatever was lost or replayed.
    pub fn check(self, rows: &[Vec<Json>]) -> Result<(), String> {
        match self {
            Ask::Accounts => {
                let balances: Option<Vec<i64>> = rows.iter().map(|row| row.get(1)?.as_i64()).collect();
                let balances = balances.ok_or("a balance is not an integer")?;
                let sum: i64 = balances.iter().sum();
                if rows.len() as u64 != ACCOUNTS || sum != TOTAL || balances.iter().any(|b| *b < 0) {
                    return Err(format!("balances {balances:?} do not add up to {TOTAL}"));
                }
            }
            Ask::Total => {
                if rows != [vec![json!(ACCOUNTS), json!(TOTAL)]] {
                    return Err(format!("the bank holds {rows:?}, not {TOTAL}"));
                }
            }
            Ask::List(list) => {
                for (expected, row) in (1_u64..).zip(rows) {
                    if row.first() != Some(&json!(expected)) {
                        return Err(format!("list {list} has {:?} in place {expected}", row.first()));
                    }
                }
            }
            Ask::Woven => {
                let mut lengths = [0; WOVEN as usize];
                for row in rows {
                    let list = row.first().and_then(Json::as_u64).unwrap_or_default();
                    let length = list.checked_sub(1).and_then(|at| lengths.get_mut(at as usize));
                    let length = length.ok_or_else(|| format!("there is no woven list {list}"))?;
                    *length += 1;
                    if row.get(1) != Some(&json!(*length)) {
                        return Err(format!("woven list {list} has {:?} in place {length}", row.get(1)));
                    }
                }
            }
            Ask::Counters | Ask::Notes | Ask::Ranking | Ask::Members => {}
        }
        Ok(())
    }
}

/// What a direct writer runs: SQL that keeps what always holds.
pub fn random_direct(random: &mut Random) -> Vec<String> {
    match random.below(32) {
        0..10 => {
            let (from, to) = (random.between(1, ACCOUNTS), random.between(1, ACCOUNTS));
            let amount = random.between(1, 20);
            vec![format!(
                "update accounts set balance = balance + case id when {from} then -{amount} else {amount} end \
                 where id in ({from}, {to}) and {from} <> {to} \
                 and (select balance from accounts where id = {from}) >= {amount};"
            )]
        }
        10..18 => vec![
            "insert into counters values('direct', 1) on conflict(name) do update set n = n + 1;".into(),
            format!("insert into direct(what) values('{}');", random.below(1000)),
        ],
        18..21 => vec!["delete from notes where key in (select key from notes limit 2);".into()],
        21..24 => vec![format!(
            "begin; delete from direct where id % 3 = {}; update direct set what = what || 'x'; commit;",
            random.below(3)
        )],
        24..27 => vec![
            "begin; update counters set n = 0; rollback;".into(),
            "update counters set n = n + 1 where name = 'direct';".into(),
        ],
        27..29 => vec![VACUUM.into()],
        _ => large_direct(random),
    }
}

/// More than fits inside a log entry: goes to segments.
pub fn large_direct(random: &mut Random) -> Vec<String> {
    let mut bytes = random.fork();
    let noise: String = (0..40_000).map(|_| format!("{:016x}", bytes.draw())).collect();
    vec![
        format!("insert into direct(what) values('{noise}');"),
        "delete from direct where length(what) > 1000;".into(),
    ]
}

/// SQL that a document runs as one transaction of its own: keeps what always holds.
pub fn random_local(random: &mut Random) -> String {
    match random.below(12) {
        0..4 => {
            let (from, to) = (random.between(1, ACCOUNTS), random.between(1, ACCOUNTS));
            let amount = random.between(1, 20);
            format!(
                "update accounts set balance = balance + case id when {from} then -{amount} else {amount} end \
                 where id in ({from}, {to}) and {from} <> {to} \
                 and (select balance from accounts where id = {from}) >= {amount}"
            )
        }
        4..8 => format!("insert into direct(what) values('local {}')", random.below(1000)),
        8..10 => format!("update direct set what = what || 'y' where id % 5 = {}", random.below(5)),
        _ => "insert into counters values('local', 1) on conflict(name) do update set n = n + 1; \
              delete from notes where key in (select key from notes limit 1)"
            .into(),
    }
}

/// The modules as coordinators load them; a load may fail for a while.
#[derive(Debug)]
pub struct Shelf {
    random: Mutex<(Random, f64)>,
    impure: bool,
}

impl Shelf {
    /// A shelf whose loads fail with probability `fails`.
    pub fn new(random: Random, fails: f64, impure: bool) -> Shelf {
        Shelf { random: Mutex::new((random, fails)), impure }
    }

    /// No load fails any more.
    pub fn calm(&self) {
        self.random.lock().1 = 0.0;
    }
}

impl Modules for Shelf {
    fn load(&self, module: ModuleHash) -> Result<Arc<dyn Runtime>, ModuleError> {
        let (random, fails) = &mut *self.random.lock();
        if random.chance(*fails) {
            return Err(ModuleError::Unavailable { module, message: "simulated: not now".into() });
        }
        match version(module) {
            Some(version) => Ok(Arc::new(Bank::new(version, self.impure))),
            None => Err(ModuleError::Invalid { module, message: "not a module of the simulation".into() }),
        }
    }
}
