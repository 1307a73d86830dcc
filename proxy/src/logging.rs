//! The proxy's own log, on standard error, and its level, which can be changed while it runs.

use std::fmt;
use std::str::FromStr;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

/// A log filter that cannot be understood.
#[derive(Debug, thiserror::Error)]
#[error(
    "{text:?} is no log filter: write a level (off, error, warn, info, debug, trace) or TARGET=LEVEL, or several with commas"
)]
pub struct LogFilterError {
    text: String,
}

/// The handle on the log's filter.
#[derive(Clone)]
pub struct LogFilter(reload::Handle<Targets, Registry>);

impl fmt::Debug for LogFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LogFilter").field(&self.to_string()).finish()
    }
}

impl fmt::Display for LogFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.with_current(ToString::to_string) {
            Ok(filter) => f.write_str(&filter),
            Err(_) => f.write_str("unknown"),
        }
    }
}

impl LogFilter {
    /// Starts logging to standard error; call once.
    ///
    /// # Errors
    /// When `filter` cannot be understood.
    pub fn install(filter: &str) -> Result<Self, LogFilterError> {
        let (filter, handle) = reload::Layer::new(parse(filter)?);
        let lines = tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(false);
        // A second installation in one process keeps the first.
        let _ = tracing_subscriber::registry()
            .with(lines.with_filter(filter))
            .try_init();
        Ok(Self(handle))
    }

    /// Reads a filter.
    ///
    /// # Errors
    /// When it cannot be understood.
    pub fn parse(&self, text: &str) -> Result<Targets, LogFilterError> {
        parse(text)
    }

    /// Puts a filter in force.
    pub fn set(&self, filter: Targets) {
        if self.0.reload(filter).is_err() {
            tracing::error!("the log filter could not be changed");
        }
    }
}

fn parse(text: &str) -> Result<Targets, LogFilterError> {
    // `Targets` takes a word that is no level for a target's name, and so a mistyped level would silence the log.
    let mistyped = text
        .split(',')
        .any(|part| !part.contains('=') && (part.trim().is_empty() || part.parse::<LevelFilter>().is_err()));
    let filter = Targets::from_str(text).ok().filter(|_| !mistyped);
    filter.ok_or_else(|| LogFilterError { text: text.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_targets_are_filters_and_mistyped_levels_are_not() {
        for good in ["info", "off", "underpass=debug", "warn,underpass::relay=trace"] {
            assert!(parse(good).is_ok(), "{good}");
        }
        for bad in ["debgu", "info,debgu", "underpass=debgu", ""] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
