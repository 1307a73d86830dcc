//! Which connections may leave the proxy for the kernel, and when.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::settings::as_written;
use crate::{Text, Workload};

/// The kernel tier of one node. Takes effect on open connections too: one that may no longer be in the kernel is taken back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OffloadSettings {
    /// Whether anything is moved into the kernel at all. Default true.
    pub enabled: bool,
    /// When a connection is worth it. A short one is not: the move costs about as much as relaying a few messages.
    pub after: OffloadAfter,
    /// Bytes that the kernel may queue at a receiver before the sender's bytes go to the proxy again, which makes the sender wait.
    /// Default 1 MiB.
    pub limit: ByteSize,
    /// A sender that waits goes on when the receiver's queue is down to this. Less than `limit`. Default 256 KiB,
    /// or half of a small limit: what is left has to last until the sender runs again, some 100 µs of a fast reader; the rest is what moves in the
    /// kernel from one wait to the next.
    pub low_watermark: ByteSize,
    /// Whether connections are moved also where the kernel cannot be asked to notice programs that read by splice(2): one of those would
    /// wait for ever for what was brought to it in the kernel. Default false.
    pub trust_readers: bool,
    /// What stays out of the kernel.
    pub except: OffloadExcept,
}

impl Default for OffloadSettings {
    fn default() -> Self {
        Self {
            enabled: true,
            after: OffloadAfter::default(),
            limit: ByteSize(1 << 20),
            low_watermark: ByteSize(256 << 10),
            trust_readers: false,
            except: OffloadExcept::default(),
        }
    }
}

impl OffloadSettings {
    /// Whether a connection between these ends, to this port, may be in the kernel.
    pub fn allows(&self, source: Option<&Workload>, destination: Option<&Workload>, port: u16) -> bool {
        let is_kept_out = |workload: &Workload| {
            let is_it = |named: &WorkloadName| named.namespace == workload.namespace && named.name == workload.name;
            self.except.namespaces.contains(&workload.namespace) || self.except.workloads.iter().any(is_it)
        };
        self.enabled
            && !self.except.ports.contains(&port)
            && ![source, destination].into_iter().flatten().any(is_kept_out)
    }
}

/// A connection is moved when it has come to any of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct OffloadAfter {
    /// Messages relayed, of both directions. Default 8: some round trips.
    pub messages: u32,
    /// Bytes relayed, of both directions. Default 256 KiB: a stream, not a page.
    pub bytes: ByteSize,
    /// Age, at the next message. Default 1 s.
    #[serde(serialize_with = "as_written")]
    pub time: Duration,
}

impl Default for OffloadAfter {
    fn default() -> Self {
        Self {
            messages: 8,
            bytes: ByteSize(256 << 10),
            time: Duration::from_secs(1),
        }
    }
}

/// Connections that stay out of the kernel, whichever of these they match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OffloadExcept {
    /// Either end is in one of these namespaces.
    pub namespaces: BTreeSet<Text>,
    /// Either end is one of these workloads.
    pub workloads: BTreeSet<WorkloadName>,
    /// The destination's port is one of these.
    pub ports: BTreeSet<u16>,
}

/// A workload as people name it; written `NAMESPACE/NAME`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WorkloadName {
    /// Its namespace.
    pub namespace: Text,
    /// Its name in there.
    pub name: Text,
}

impl Serialize for WorkloadName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}/{}", self.namespace, self.name))
    }
}

/// A number of bytes, less than 4 GiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u32);

/// Units of a [`ByteSize`], the largest first.
const UNITS: [(&str, u32); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = |(_, unit): &&(&str, u32)| self.0 >= *unit && self.0.is_multiple_of(*unit);
        match UNITS.iter().find(whole) {
            Some((name, unit)) => write!(f, "{}{name}", self.0 / unit),
            None => write!(f, "{}", self.0),
        }
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A text is not a [`ByteSize`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not a number of bytes")]
pub struct ByteSizeError;

impl FromStr for ByteSize {
    type Err = ByteSizeError;

    /// Reads `65536`, `64KiB`, `1 MiB`.
    fn from_str(text: &str) -> Result<Self, ByteSizeError> {
        let with_unit = UNITS
            .iter()
            .find_map(|(name, unit)| text.strip_suffix(name).map(|number| (number.trim_end(), *unit)));
        let (number, unit) = with_unit.unwrap_or((text, 1));
        // `u32::from_str` takes a leading plus sign, which no one means.
        let number = Some(number).filter(|n| n.bytes().all(|b| b.is_ascii_digit()));
        let bytes = number
            .and_then(|n| n.parse::<u32>().ok())
            .and_then(|n| n.checked_mul(unit));
        bytes.map(Self).ok_or(ByteSizeError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::workload;

    #[test]
    fn byte_sizes_are_read_and_written_alike() {
        for (text, bytes) in [
            ("0", 0),
            ("1000", 1000),
            ("64KiB", 65536),
            ("1MiB", 1 << 20),
            ("3GiB", 3 << 30),
        ] {
            let size: ByteSize = text.parse().unwrap();
            assert_eq!((size, size.to_string()), (ByteSize(bytes), text.to_owned()));
        }
        assert_eq!("1 MiB".parse(), Ok(ByteSize(1 << 20)));
        for text in ["", "KiB", "+1", "-1", "1.5MiB", "1MB", "4GiB", "4294967296", "a"] {
            assert_eq!(text.parse::<ByteSize>(), Err(ByteSizeError), "{text}");
        }
    }

    #[test]
    fn either_end_or_the_port_keeps_a_connection_out() {
        let mut settings = OffloadSettings::default();
        let (web, db) = (workload("web", &[]), workload("db", &[]));
        let allows = |settings: &OffloadSettings| settings.allows(Some(&web), Some(&db), 5432);
        assert!(allows(&settings));
        settings.except.ports.insert(5432);
        assert!(!allows(&settings));
        settings.except = OffloadExcept::default();
        settings.except.namespaces.insert(db.namespace.clone());
        assert!(!allows(&settings) && settings.allows(None, None, 5432));
        settings.except = OffloadExcept::default();
        settings.except.workloads.insert(WorkloadName {
            namespace: web.namespace.clone(),
            name: web.name.clone(),
        });
        assert!(!allows(&settings) && settings.allows(None, Some(&db), 5432));
        settings.enabled = false;
        assert!(!settings.allows(None, None, 1));
    }
}
