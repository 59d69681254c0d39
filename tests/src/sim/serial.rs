//! A check for serializability from what was observed alone: no log, no replay, no product code.
//!
//! Transactions append values to lists, each value once, and read lists. A list that was read tells the
//! order of the appends before it, so the dependencies between transactions can be read off (as Elle does:
//! Kingsbury and Alvaro, VLDB 2020). An order in which all of them run one after another exists iff those
//! dependencies have no cycle.
//!
//! | edge | from | to |
//! | --- | --- | --- |
//! | ww | who appended a value | who appended the next one of the same list |
//! | wr | who appended the last value that was read | who read it |
//! | rw | who read a list | who appended the value after the last one read |
//!
//! | anomaly | found as |
//! | --- | --- |
//! | G0, dirty write | a cycle of ww |
//! | G1a, aborted read | a value that was read, of a transaction that had no effect |
//! | G1b, intermediate read | a list that ends between two appends of one transaction |
//! | G1c, circular information flow | a cycle of ww and wr |
//! | G-single, read skew | a cycle with one rw |
//! | G2, write skew | a cycle with more |
//! | [`Anomaly::Order`] | two reads of a list of which neither begins with the other, a value twice, or of nobody |
//!
//! Invariant: the verdict depends on the history alone. The first anomaly in the order of the table is
//! reported, with as short a cycle as there is.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;

#[cfg(test)]
mod tests;

/// What a transaction did to one list.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Put a value at its end.
    Append {
        /// Which list.
        list: u64,
        /// What.
        value: u64,
    },
    /// Read all of it.
    Read {
        /// Which list.
        list: u64,
        /// What it held.
        values: Vec<u64>,
    },
    /// Read its length and its last value.
    Saw {
        /// Which list.
        list: u64,
        /// How many values it held.
        n: u64,
        /// The last of them; any where there is none.
        last: u64,
    },
}

/// One transaction, as its maker knows it.
#[derive(Debug, Clone)]
pub struct Txn {
    /// Who ran it, and when: for the reader of a report.
    pub who: String,
    /// Whether it had an effect.
    pub applied: bool,
    /// What it did, in order.
    pub steps: Vec<Step>,
}

/// Why one transaction comes before another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Ww,
    Wr,
    Rw,
}

/// A dependency, with what shows it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Edge {
    kind: Kind,
    to: usize,
    list: u64,
    /// The value before, if there is one, and the value that matters.
    values: (Option<u64>, u64),
}

/// What no serial history shows. Its text is the part of the history that proves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Anomaly {
    /// Dirty write.
    G0(String),
    /// Aborted read.
    G1a(String),
    /// Intermediate read.
    G1b(String),
    /// Circular information flow.
    G1c(String),
    /// Read skew.
    GSingle(String),
    /// Write skew and phantoms.
    G2(String),
    /// The reads of one list contradict each other.
    Order(String),
}

impl fmt::Display for Anomaly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, text) = match self {
            Anomaly::G0(text) => ("G0, a dirty write", text),
            Anomaly::G1a(text) => ("G1a, an aborted read", text),
            Anomaly::G1b(text) => ("G1b, an intermediate read", text),
            Anomaly::G1c(text) => ("G1c, a circular information flow", text),
            Anomaly::GSingle(text) => ("G-single, read skew", text),
            Anomaly::G2(text) => ("G2, write skew", text),
            Anomaly::Order(text) => ("contradicting reads", text),
        };
        write!(f, "not serializable ({name}):\n{text}")
    }
}

/// What was looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extent {
    /// Transactions.
    pub txns: u64,
    /// Dependencies between them.
    pub edges: u64,
}

/// Whether some serial order explains the history.
///
/// # Errors
///
/// The first [`Anomaly`].
pub fn check(history: &[Txn]) -> Result<Extent, Anomaly> {
    let graph = Graph::read(history)?;
    graph.acyclic()?;
    let edges = graph.edges.iter().map(|edges| edges.len() as u64).sum();
    Ok(Extent { txns: history.len() as u64, edges })
}

struct Graph<'a> {
    history: &'a [Txn],
    edges: Vec<BTreeSet<Edge>>,
}

impl<'a> Graph<'a> {
    fn read(history: &'a [Txn]) -> Result<Graph<'a>, Anomaly> {
        let writers = writers(history)?;
        let orders = orders(history)?;
        let mut graph = Graph { history, edges: vec![BTreeSet::new(); history.len()] };
        for (list, order) in &orders {
            for value in order.iter() {
                let Some((writer, _)) = writers.get(&(*list, *value)) else {
                    return Err(Anomaly::Order(format!(
                        "{value} is in list {list}, and nobody put it there"
                    )));
                };
                if !history[*writer].applied {
                    return Err(Anomaly::G1a(format!(
                        "  {value} of list {list} was read, and is of a transaction without effect:\n  {}",
                        graph.line(*writer)
                    )));
                }
            }
        }
        for (list, order) in &orders {
            for pair in order.windows(2) {
                let (from, to) = (writers[&(*list, pair[0])].0, writers[&(*list, pair[1])].0);
                graph.add(from, Kind::Ww, to, *list, (Some(pair[0]), pair[1]));
            }
        }
        for (at, txn) in history.iter().enumerate().filter(|(_, txn)| txn.applied) {
            for step in &txn.steps {
                let (list, n, last) = match step {
                    Step::Append { .. } => continue,
                    Step::Read { list, values } => (*list, values.len(), values.last().copied()),
                    Step::Saw { list, n, last } => (*list, *n as usize, (*n > 0).then_some(*last)),
                };
                graph.reads(at, (list, n, last), &writers, orders.get(&list).copied().unwrap_or_default())?;
            }
        }
        Ok(graph)
    }

    /// What follows from one read: the first `n` values of a list, of which `last` is the last.
    fn reads(
        &mut self,
        at: usize,
        (list, n, last): (u64, usize, Option<u64>),
        writers: &Writers,
        order: &[u64],
    ) -> Result<(), Anomaly> {
        if let Some(last) = last {
            let place = order.iter().position(|value| *value == last);
            let Some((writer, is_final)) = writers.get(&(list, last)).copied() else {
                let line = self.line(at);
                return Err(Anomaly::Order(format!(
                    "{last} was seen in list {list}, nobody put it there: {line}"
                )));
            };
            if !self.history[writer].applied {
                let (reader, writer) = (self.line(at), self.line(writer));
                return Err(Anomaly::G1a(format!(
                    "  {reader}\n  saw {last} in list {list}, of a transaction without effect:\n  {writer}"
                )));
            }
            // What no whole read shows is in no order yet.
            if place.map_or(order.len() >= n, |place| place != n - 1) {
                let line = self.line(at);
                return Err(Anomaly::Order(format!(
                    "  {line}\n  saw list {list} with {n} values, the last {last}; others read {order:?}"
                )));
            }
            if !is_final && writer != at {
                let (reader, writer) = (self.line(at), self.line(writer));
                return Err(Anomaly::G1b(format!(
                    "  {reader}\n  read list {list} up to {last}, in the middle of\n  {writer}"
                )));
            }
            self.add(writer, Kind::Wr, at, list, (None, last));
        }
        if let Some(next) = order.get(n) {
            let writer = writers[&(list, *next)].0;
            self.add(at, Kind::Rw, writer, list, (last, *next));
        }
        Ok(())
    }

    fn add(&mut self, from: usize, kind: Kind, to: usize, list: u64, values: (Option<u64>, u64)) {
        if from != to {
            self.edges[from].insert(Edge { kind, to, list, values });
        }
    }

    fn acyclic(&self) -> Result<(), Anomaly> {
        // What is in no cycle cannot be in one of fewer edges.
        let knots = self.knots();
        if knots.is_empty() {
            return Ok(());
        }
        let in_knot = |at: usize| knots.contains(&at);
        type Make = fn(String) -> Anomaly;
        let tries: [(Kind, Kind, Make); 4] = [
            (Kind::Ww, Kind::Ww, Anomaly::G0),
            (Kind::Wr, Kind::Wr, Anomaly::G1c),
            (Kind::Rw, Kind::Wr, Anomaly::GSingle),
            (Kind::Rw, Kind::Rw, Anomaly::G2),
        ];
        for (first, most, anomaly) in tries {
            let mut best: Option<Vec<(usize, Edge)>> = None;
            for from in (0..self.edges.len()).filter(|at| in_knot(*at)) {
                for edge in self.edges[from].iter().filter(|edge| edge.kind == first && in_knot(edge.to)) {
                    if let Some(mut path) = self.path(edge.to, from, most)
                        && best.as_ref().is_none_or(|best| path.len() + 1 < best.len())
                    {
                        path.insert(0, (from, edge.clone()));
                        best = Some(path);
                    }
                }
            }
            if let Some(cycle) = best {
                return Err(anomaly(self.story(&cycle)));
            }
        }
        Ok(())
    }

    /// The shortest way over edges of kinds up to `most`.
    fn path(&self, from: usize, to: usize, most: Kind) -> Option<Vec<(usize, Edge)>> {
        let mut came: BTreeMap<usize, (usize, &Edge)> = BTreeMap::new();
        let mut queue = VecDeque::from([from]);
        while let Some(at) = queue.pop_front() {
            if at == to {
                let (mut path, mut at) = (Vec::new(), to);
                while at != from {
                    let (before, edge) = came[&at];
                    path.push((before, edge.clone()));
                    at = before;
                }
                path.reverse();
                return Some(path);
            }
            for edge in self.edges[at].iter().filter(|edge| edge.kind <= most) {
                if edge.to != from && !came.contains_key(&edge.to) {
                    came.insert(edge.to, (at, edge));
                    queue.push_back(edge.to);
                }
            }
        }
        None
    }

    /// Transactions that are in some cycle: what is left when those without a predecessor or without a
    /// successor are taken away again and again. (And those between two cycles, which does no harm.)
    fn knots(&self) -> BTreeSet<usize> {
        let mut left: BTreeSet<usize> = (0..self.edges.len()).collect();
        let mut back: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); self.edges.len()];
        for (from, edges) in self.edges.iter().enumerate() {
            for edge in edges {
                back[edge.to].insert(from);
            }
        }
        let mut queue: VecDeque<usize> = left.iter().copied().collect();
        while let Some(at) = queue.pop_front() {
            let follows = back[at].iter().any(|from| left.contains(from));
            let precedes = self.edges[at].iter().any(|edge| left.contains(&edge.to));
            if (!follows || !precedes) && left.remove(&at) {
                queue.extend(back[at].iter().copied());
                queue.extend(self.edges[at].iter().map(|edge| edge.to));
            }
        }
        left
    }

    /// A transaction, readable.
    fn line(&self, at: usize) -> String {
        const SHOWN: usize = 4;
        let steps = self.history[at].steps.iter().map(|step| match step {
            Step::Append { list, value } => format!("appended {value} to list {list}"),
            Step::Read { list, values } if values.len() > SHOWN => {
                let end = &values[values.len() - SHOWN..];
                format!("read list {list} as {} values, at last {end:?}", values.len())
            }
            Step::Read { list, values } => format!("read list {list} as {values:?}"),
            Step::Saw { list, n: 0, .. } => format!("saw list {list} empty"),
            Step::Saw { list, n, last } => format!("saw list {list} with {n} values, the last {last}"),
        });
        let steps: Vec<String> = steps.collect();
        format!("T{at}, {}: {}", self.history[at].who, steps.join("; "))
    }

    fn story(&self, cycle: &[(usize, Edge)]) -> String {
        let mut lines: Vec<String> = cycle.iter().map(|(at, _)| format!("  {}", self.line(*at))).collect();
        for (from, Edge { kind, to, list, values: (before, value) }) in cycle {
            let after = before.map_or("first".into(), |before| format!("after {before}"));
            lines.push(match kind {
                Kind::Ww => format!("  T{from} -ww-> T{to}: T{to} appended {value} to list {list} {after}"),
                Kind::Wr => format!("  T{from} -wr-> T{to}: T{to} read {value}, which T{from} appended to list {list}"),
                Kind::Rw => format!(
                    "  T{from} -rw-> T{to}: T{to} appended {value} to list {list} {after}, where T{from} saw nothing yet"
                ),
            });
        }
        lines.push("  each of them comes before the next, and the last before the first".into());
        lines.join("\n")
    }
}

/// By list and value: who appended it, and whether it was their last to that list.
type Writers = BTreeMap<(u64, u64), (usize, bool)>;

fn writers(history: &[Txn]) -> Result<Writers, Anomaly> {
    let mut writers = Writers::new();
    for (at, txn) in history.iter().enumerate() {
        let mut last: BTreeMap<u64, u64> = BTreeMap::new();
        for step in &txn.steps {
            let Step::Append { list, value } = step else { continue };
            if let Some((other, _)) = writers.insert((*list, *value), (at, true)) {
                let (one, two) = (&history[other].who, &txn.who);
                return Err(Anomaly::Order(format!(
                    "  {one} and {two} both appended {value} to list {list}"
                )));
            }
            if let Some(before) = last.insert(*list, *value) {
                writers.insert((*list, before), (at, false));
            }
        }
    }
    Ok(writers)
}

/// The longest read of each list, with which all others must begin.
fn orders(history: &[Txn]) -> Result<BTreeMap<u64, &[u64]>, Anomaly> {
    let mut orders: BTreeMap<u64, &[u64]> = BTreeMap::new();
    for txn in history.iter().filter(|txn| txn.applied) {
        for step in &txn.steps {
            let Step::Read { list, values } = step else { continue };
            let order = orders.entry(*list).or_insert(values);
            let (short, long) =
                if values.len() > order.len() { (*order, &values[..]) } else { (&values[..], *order) };
            if !long.starts_with(short) {
                return Err(Anomaly::Order(format!(
                    "  {} read list {list} as {values:?}\n  another as {order:?}",
                    txn.who
                )));
            }
            *order = long;
        }
    }
    for (list, order) in &orders {
        let distinct: BTreeSet<&u64> = order.iter().collect();
        if distinct.len() != order.len() {
            return Err(Anomaly::Order(format!("  list {list} holds a value twice: {order:?}")));
        }
    }
    Ok(orders)
}
