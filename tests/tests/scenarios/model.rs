//! The todo example's rules once more, in memory: what each mutation must do, or why it is refused.
//!
//! Written from the table in `examples/todo/reducer/src/lib.rs`, not from its SQL, so that a mistake
//! there is not repeated here.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value as Json, json};

/// Everything that a volume holds. As [`Model::rows`] it is what [`super::EVERYTHING`] answers.
#[derive(Debug, Default)]
pub struct Model {
    /// Capacity by list.
    lists: BTreeMap<String, Option<u64>>,
    /// List by task.
    tasks: BTreeMap<String, String>,
    deleted: BTreeSet<String>,
    /// Task and author's id by comment.
    comments: BTreeMap<String, (String, String)>,
    /// Claimant and name by task.
    claims: BTreeMap<String, (String, String)>,
}

impl Model {
    /// Does what `user` asks, or says why not.
    pub fn apply(&mut self, user: &str, reducer: &str, args: &Json) -> Result<(), String> {
        let text = |name: &str| args[name].as_str().unwrap_or_default().to_owned();
        match reducer {
            "create_list" => {
                let id = text("id");
                if self.lists.contains_key(&id) {
                    return Err(format!("there is a list {id} already"));
                }
                self.lists.insert(id, None);
            }
            "add_task" => {
                let (id, list) = (text("id"), text("list"));
                let capacity = *self.lists.get(&list).ok_or(format!("there is no list {list}"))?;
                if self.tasks.contains_key(&id) {
                    return Err(format!("there is a task {id} already"));
                }
                let tasks = self.count(&list);
                if let Some(capacity) = capacity.filter(|capacity| tasks >= *capacity) {
                    return Err(format!("the list is full: {tasks} of {capacity}"));
                }
                self.tasks.insert(id, list);
            }
            "set_done" => self.known(&text("id"))?,
            "delete_task" => {
                let id = text("id");
                let comments = self.comments.values().filter(|(task, _)| *task == id).count() as u64;
                if let Some(seen) = args["comments_seen"].as_u64() {
                    match comments.saturating_sub(seen) {
                        0 => {}
                        1 => return Err("the task has a comment that you have not seen".into()),
                        more => return Err(format!("the task has {more} comments that you have not seen")),
                    }
                }
                if self.tasks.remove(&id).is_some() {
                    self.comments.retain(|_, (task, _)| *task != id);
                    self.claims.remove(&id);
                    self.deleted.insert(id);
                }
            }
            "set_capacity" => {
                let (list, capacity) = (text("list"), args["capacity"].as_u64());
                let tasks = self.count(&list);
                let bound = self.lists.get_mut(&list).ok_or(format!("there is no list {list}"))?;
                if capacity.is_some_and(|capacity| tasks > capacity) {
                    let s = if tasks == 1 { "" } else { "s" };
                    return Err(format!("the list has {tasks} task{s} already"));
                }
                *bound = capacity;
            }
            "add_comment" => {
                let task = text("task");
                self.known(&task)?;
                if self.comments.insert(text("id"), (task, user.to_owned())).is_some() {
                    return Err("nobody sends a comment's id twice".into());
                }
            }
            "delete_comment" => drop(self.comments.remove(&text("id"))),
            "claim_task" => {
                let id = text("id");
                self.known(&id)?;
                self.nobody_but(user, &id)?;
                self.claims.insert(id, (user.to_owned(), text("name")));
            }
            "release_task" => {
                let id = text("id");
                self.nobody_but(user, &id)?;
                self.claims.remove(&id);
            }
            other => panic!("nobody sends {other}"),
        }
        self.check();
        Ok(())
    }

    /// What the volume must hold now.
    pub fn rows(&self) -> Json {
        let claims =
            self.claims.iter().map(|(task, (who, name))| json!(["claim", task, format!("{who} {name}")]));
        let comments =
            self.comments.iter().map(|(id, (task, who))| json!(["comment", id, format!("{task} {who}")]));
        let lists = self.lists.iter().map(|(id, capacity)| json!(["list", id, capacity]));
        let tasks = self.tasks.iter().map(|(id, list)| json!(["task", id, list]));
        claims.chain(comments).chain(lists).chain(tasks).collect()
    }

    fn count(&self, list: &str) -> u64 {
        self.tasks.values().filter(|of| *of == list).count() as u64
    }

    fn known(&self, task: &str) -> Result<(), String> {
        match (self.tasks.contains_key(task), self.deleted.contains(task)) {
            (true, _) => Ok(()),
            (false, true) => Err("the task was deleted".into()),
            (false, false) => Err(format!("there is no task {task}")),
        }
    }

    fn nobody_but(&self, user: &str, task: &str) -> Result<(), String> {
        match self.claims.get(task) {
            Some((claimant, name)) if claimant != user => Err(format!("{name} has claimed it")),
            Some(_) | None => Ok(()),
        }
    }

    /// The module's invariants, of the model itself.
    fn check(&self) {
        for (list, capacity) in &self.lists {
            assert!(
                capacity.is_none_or(|capacity| self.count(list) <= capacity),
                "{list} is too full: {self:?}"
            );
        }
        let of_comments = self.comments.values().map(|(task, _)| task);
        assert!(of_comments.chain(self.claims.keys()).all(|task| self.tasks.contains_key(task)), "{self:?}");
    }
}
