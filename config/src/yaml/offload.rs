//! The `node.offload:` section.

use serde::Deserialize;

use super::reading::{Path, Reading, YES_OR_NO};
use super::scalar::Scalar;
use crate::{ByteSize, OffloadAfter, OffloadExcept, OffloadSettings, WorkloadName};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct OffloadShape<'a> {
    #[serde(borrow)]
    enabled: Option<Scalar<'a>>,
    after: AfterShape<'a>,
    limit: Option<Scalar<'a>>,
    low_watermark: Option<Scalar<'a>>,
    trust_readers: Option<Scalar<'a>>,
    except: ExceptShape<'a>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct AfterShape<'a> {
    #[serde(borrow)]
    messages: Option<Scalar<'a>>,
    bytes: Option<Scalar<'a>>,
    time: Option<Scalar<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ExceptShape<'a> {
    #[serde(borrow)]
    namespaces: Vec<Scalar<'a>>,
    workloads: Vec<Scalar<'a>>,
    ports: Vec<Scalar<'a>>,
}

/// Less would keep a single large message from going to the kernel at all; more is a slip of the hand.
const SMALLEST_LIMIT: ByteSize = ByteSize(16 << 10);
const LARGEST_LIMIT: ByteSize = ByteSize(1 << 30);

impl OffloadShape<'_> {
    pub(super) fn compile(&self, path: Path<'_>, reading: &mut Reading) -> OffloadSettings {
        let default = OffloadSettings::default();
        let limit = bytes(path.field("limit"), self.limit.as_ref(), default.limit, reading);
        if !(SMALLEST_LIMIT..=LARGEST_LIMIT).contains(&limit) {
            let remedy = format!("write {SMALLEST_LIMIT} to {LARGEST_LIMIT}");
            reading.report(
                path.field("limit"),
                &limit.to_string(),
                "is not a sensible limit",
                remedy,
            );
        }
        let half = ByteSize(limit.0 / 2);
        let low_watermark = bytes(
            path.field("low_watermark"),
            self.low_watermark.as_ref(),
            default.low_watermark.min(half),
            reading,
        );
        if low_watermark >= limit {
            let problem = format!("is not below the limit, {limit}");
            let remedy = "write less; 256KiB, or half of a small limit, is the default";
            reading.report(path.field("low_watermark"), &low_watermark.to_string(), problem, remedy);
        }
        OffloadSettings {
            enabled: reading
                .choice(path.field("enabled"), self.enabled.as_ref(), &YES_OR_NO)
                .unwrap_or(default.enabled),
            after: self.after.compile(path.field("after"), reading),
            limit,
            low_watermark,
            trust_readers: reading
                .choice(path.field("trust_readers"), self.trust_readers.as_ref(), &YES_OR_NO)
                .unwrap_or(default.trust_readers),
            except: self.except.compile(path.field("except"), reading),
        }
    }
}

impl AfterShape<'_> {
    fn compile(&self, path: Path<'_>, reading: &mut Reading) -> OffloadAfter {
        let default = OffloadAfter::default();
        OffloadAfter {
            messages: (self.messages.as_ref())
                .and_then(|messages| reading.count(path.field("messages"), messages, 1..=u32::MAX))
                .unwrap_or(default.messages),
            bytes: bytes(path.field("bytes"), self.bytes.as_ref(), default.bytes, reading),
            time: reading.duration_or_zero(path.field("time"), self.time.as_ref(), default.time),
        }
    }
}

impl ExceptShape<'_> {
    fn compile(&self, path: Path<'_>, reading: &mut Reading) -> OffloadExcept {
        let [namespaces, workloads, ports] = ["namespaces", "workloads", "ports"].map(|field| path.field(field));
        let mut except = OffloadExcept::default();
        for (index, namespace) in self.namespaces.iter().enumerate() {
            except
                .namespaces
                .insert(reading.name(namespaces.item(index), namespace));
        }
        for (index, workload) in self.workloads.iter().enumerate() {
            except
                .workloads
                .extend(workload_name(workloads.item(index), workload, reading));
        }
        for (index, port) in self.ports.iter().enumerate() {
            except.ports.extend(reading.port(ports.item(index), port));
        }
        except
    }
}

/// A workload's name. It need not exist: workloads come and go, and one that comes back shall still stay out.
fn workload_name(path: Path<'_>, value: &str, reading: &mut Reading) -> Option<WorkloadName> {
    let Some((namespace, name)) = value.split_once('/') else {
        reading.report(
            path,
            value,
            "is not a workload",
            "write NAMESPACE/NAME, for example shop/db-1",
        );
        return None;
    };
    Some(WorkloadName {
        namespace: reading.name(path, namespace),
        name: reading.name(path, name),
    })
}

fn bytes(path: Path<'_>, value: Option<&Scalar<'_>>, default: ByteSize, reading: &mut Reading) -> ByteSize {
    let Some(value) = value else { return default };
    value.parse().unwrap_or_else(|error| {
        let remedy = "write a number with a unit, for example 64KiB or 1MiB, below 4GiB";
        reading.report(path, value, format!("{error}"), remedy);
        default
    })
}
