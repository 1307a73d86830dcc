//! The `capture:` section.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use foldhash::quality::RandomState;
use serde::Deserialize;

use super::reading::{Path, Reading, YES_OR_NO};
use super::scalar::Scalar;
use super::workloads::Workloads;
use crate::{CaptureSettings, CapturedPod, PodPlace, WorkloadUid};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct CaptureShape<'a> {
    #[serde(borrow)]
    cgroup: Option<Scalar<'a>>,
    kubelet_cgroups: Vec<Scalar<'a>>,
    pods: Vec<CapturedPodShape<'a>>,
    proxy_user: Option<Scalar<'a>>,
    run_dir: Option<Scalar<'a>>,
    pin_dir: Option<Scalar<'a>>,
    refuse_after: Option<Scalar<'a>>,
    keep: Option<Scalar<'a>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CapturedPodShape<'a> {
    #[serde(borrow)]
    netns: Option<Scalar<'a>>,
    pid: Option<Scalar<'a>>,
    workload: Scalar<'a>,
}

/// What the kernel may give (`PID_MAX_LIMIT`, include/linux/threads.h).
const PIDS: RangeInclusive<u32> = 1..=4_194_304;

impl CaptureShape<'_> {
    /// `mesh_is_elsewhere`: the workloads are not those of the document, and pods name theirs by uid.
    pub(super) fn compile(
        &self,
        mesh_is_elsewhere: bool,
        workloads: &Workloads<'_>,
        reading: &mut Reading,
    ) -> CaptureSettings {
        let section = Path::Section("capture");
        let path = |field| Path::Field(&section, field);
        CaptureSettings {
            cgroup: (self.cgroup.as_ref()).and_then(|value| reading.absolute(path("cgroup"), value)),
            kubelet_cgroups: self.kubelet_cgroups(path("kubelet_cgroups"), reading),
            pods: self.pods(path("pods"), (!mesh_is_elsewhere).then_some(workloads), reading),
            proxy_user: (self.proxy_user.as_ref()).map(|user| reading.name(path("proxy_user"), user)),
            run_dir: (self.run_dir.as_ref())
                .and_then(|value| reading.absolute(path("run_dir"), value))
                .unwrap_or_else(|| CaptureSettings::DEFAULT_RUN_DIR.into()),
            pin_dir: (self.pin_dir.as_ref())
                .and_then(|value| reading.absolute(path("pin_dir"), value))
                .unwrap_or_else(|| CaptureSettings::DEFAULT_PIN_DIR.into()),
            refuse_after: reading.duration(
                path("refuse_after"),
                self.refuse_after.as_ref(),
                CaptureSettings::DEFAULT_REFUSE_AFTER,
            ),
            keep: reading
                .choice(path("keep"), self.keep.as_ref(), &YES_OR_NO)
                .unwrap_or_default(),
        }
    }

    fn kubelet_cgroups(&self, path: Path<'_>, reading: &mut Reading) -> Vec<PathBuf> {
        let values = self.kubelet_cgroups.iter().enumerate();
        values
            .filter_map(|(index, value)| reading.absolute(path.item(index), value))
            .collect()
    }

    fn pods(&self, path: Path<'_>, workloads: Option<&Workloads<'_>>, reading: &mut Reading) -> Vec<CapturedPod> {
        let mut places: HashMap<String, usize, RandomState> = HashMap::default();
        let mut uids: HashMap<WorkloadUid, usize, RandomState> = HashMap::default();
        let mut pods = Vec::with_capacity(self.pods.len());
        for (index, shape) in self.pods.iter().enumerate() {
            let path = path.item(index);
            let place = shape.place(path, reading);
            if let Some((place, written)) = &place
                && let Some(first) = places.insert(format!("{place:?}"), index)
            {
                let problem = format!("pods[{first}] already has this namespace");
                let field = if shape.netns.is_some() { "netns" } else { "pid" };
                reading.report(
                    path.field(field),
                    written,
                    problem,
                    "a namespace is one pod: remove one",
                );
            }
            let workload = shape.workload(path.field("workload"), workloads, reading);
            if let Some(uid) = &workload
                && let Some(first) = uids.insert(uid.clone(), index)
            {
                let problem = format!("pods[{first}] is already this workload");
                let remedy = "give each pod a workload of its own";
                reading.report(path.field("workload"), &shape.workload, problem, remedy);
            }
            if let (Some((place, _)), Some(workload)) = (place, workload) {
                pods.push(CapturedPod { place, workload });
            }
        }
        pods
    }
}

impl CapturedPodShape<'_> {
    fn workload(
        &self,
        path: Path<'_>,
        workloads: Option<&Workloads<'_>>,
        reading: &mut Reading,
    ) -> Option<WorkloadUid> {
        let Some(workloads) = workloads else {
            return Some(reading.uid(path, &self.workload));
        };
        let index = workloads.find(path, &self.workload, reading)?;
        Some(workloads.uid(index).clone())
    }

    fn place(&self, path: Path<'_>, reading: &mut Reading) -> Option<(PodPlace, String)> {
        match (&self.netns, &self.pid) {
            (Some(netns), None) => {
                let file = reading.absolute(path.field("netns"), netns)?;
                Some((PodPlace::Netns(file), netns.to_string()))
            }
            (None, Some(pid)) => {
                let number = reading.count(path.field("pid"), pid, PIDS)?;
                Some((PodPlace::Pid(number), pid.to_string()))
            }
            (Some(_), Some(pid)) => {
                reading.report(path.field("pid"), pid, "`netns` is given too", "remove one of them");
                None
            }
            (None, None) => {
                let remedy = "add for example `netns: /run/netns/web`, or `pid:` of a process in it";
                reading.report(path, "", "a captured pod needs its network namespace", remedy);
                None
            }
        }
    }
}
