//! What of a capture instance exists in the kernel: programs, maps and links, by their ids.
//!
//! Names would mix up the instances of tests that run at the same time. An object is an instance's when it is pinned in the node's own
//! bpffs or when a process of the instance has it open; ids are not used twice while a test runs.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;

use super::node::CaptureNode;
use crate::process::Process;
use crate::wait;

/// A program, map or link.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelObject {
    /// `prog`, `map` or `link`.
    pub kind: &'static str,
    /// Its id.
    pub id: u64,
}

/// A set of them.
pub type Objects = BTreeSet<KernelObject>;

const KINDS: [&str; 3] = ["prog", "map", "link"];

impl CaptureNode {
    /// What is pinned on this node, and what the processes `pids` have open. Links lead to their programs, programs to their maps.
    pub fn kernel_objects(&self, pids: &[u32]) -> Objects {
        let mut objects: Objects = pids.iter().flat_map(|pid| opened_by(*pid)).collect();
        for kind in KINDS {
            let pinned = self.list(&["-f", kind, "show"]).into_iter();
            let pinned = pinned.filter(|object| object["pinned"].as_array().is_some_and(|paths| !paths.is_empty()));
            objects.extend(pinned.filter_map(|object| {
                Some(KernelObject {
                    kind,
                    id: object["id"].as_u64()?,
                })
            }));
        }
        for (kind, key, of) in [("link", "prog_id", "prog"), ("prog", "map_ids", "map")] {
            let known = |object: &Value| {
                let id = object["id"].as_u64();
                id.is_some_and(|id| objects.contains(&KernelObject { kind, id }))
            };
            let listed = self.list(&[kind, "show"]);
            let used = listed
                .iter()
                .filter(|object| known(object))
                .flat_map(|object| match &object[key] {
                    Value::Array(ids) => ids.iter().filter_map(Value::as_u64).collect(),
                    id => id.as_u64().into_iter().collect::<Vec<_>>(),
                });
            let used: Vec<u64> = used.collect();
            objects.extend(used.into_iter().map(|id| KernelObject { kind: of, id }));
        }
        objects
    }

    /// Those of `objects` that exist.
    pub fn existing(&self, objects: &Objects) -> Objects {
        let mut existing = Objects::new();
        for kind in KINDS {
            let ids: BTreeSet<u64> = self
                .list(&[kind, "show"])
                .iter()
                .filter_map(|o| o["id"].as_u64())
                .collect();
            let kept = objects
                .iter()
                .filter(|object| object.kind == kind && ids.contains(&object.id));
            existing.extend(kept.cloned());
        }
        existing
    }

    /// How many entries the pinned map `name` has.
    pub fn map_entries(&self, name: &str) -> usize {
        let path = self.pin_directory().join("maps").join(name).display().to_string();
        self.list(&["map", "dump", "pinned", &path]).len()
    }

    fn list(&self, arguments: &[&str]) -> Vec<Value> {
        let look = || {
            let mut command = Process::command("bpftool");
            command.arg("-j").args(arguments);
            let outcome = self.run(command);
            // It stumbles over objects of others that go while it looks.
            outcome.status.success().then_some(outcome.stdout)
        };
        let text = wait::some(wait::SOON, &format!("bpftool {arguments:?} works"), look);
        match serde_json::from_str(&text) {
            Ok(Value::Array(list)) => list,
            // bpftool prints nothing, or an empty object, when there is nothing.
            Ok(_) | Err(_) if text.trim().len() <= 2 => Vec::new(),
            other => panic!("bpftool {arguments:?}: {other:?}: {text}"),
        }
    }

    /// The paths below the node's pin folder.
    pub fn pins(&self) -> Vec<String> {
        let mut command = Process::command("find");
        command.arg(self.pin_directory()).args(["-mindepth", "1"]);
        let outcome = self.run(command);
        // Without the folder there are no pins either.
        outcome.stdout.lines().map(str::to_owned).collect()
    }
}

/// The objects of which a process has descriptors.
fn opened_by(pid: u32) -> Vec<KernelObject> {
    let Ok(folder) = fs::read_dir(format!("/proc/{pid}/fdinfo")) else {
        return Vec::new();
    };
    let texts = folder
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path()).ok());
    let objects = texts.flat_map(|text| {
        let kinds = KINDS.map(|kind| {
            let label = format!("{kind}_id:");
            let line = text.lines().find_map(|line| line.strip_prefix(&label));
            let id = line.and_then(|id| id.trim().parse().ok());
            id.map(|id| KernelObject { kind, id })
        });
        kinds.into_iter().flatten()
    });
    objects.collect()
}
