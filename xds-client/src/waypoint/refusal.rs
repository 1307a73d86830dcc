//! Why something is not translated.

use std::fmt;

use thiserror::Error;
use underpass_config::Text;

/// What is not served as istiod sent it, and why. Written for an operator.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{name}`: `{field}` {why}")]
pub struct Untranslated {
    /// The chain, cluster, endpoint set or listener.
    pub name: Text,
    /// The field, as a path from there.
    pub field: String,
    /// What is wrong with it, and what to do.
    pub why: String,
}

/// The same, of something whose name is not known here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    field: String,
    why: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` {}", self.field, self.why)
    }
}

impl Refused {
    pub(crate) fn new(field: impl Into<String>, why: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            why: why.into(),
        }
    }

    /// A field that must be there.
    pub(crate) fn missing(field: impl Into<String>) -> Self {
        Self::new(field, "is missing")
    }

    /// A value of an enumeration, or a kind of something, that is not served.
    pub(crate) fn unsupported(field: impl Into<String>, value: impl fmt::Display) -> Self {
        Self::new(field, format!("is {value}, which is not supported"))
    }

    /// Seen from around it.
    pub(crate) fn within(mut self, outer: &str) -> Self {
        self.field = match self.field.as_str() {
            "" => outer.to_owned(),
            inner if inner.starts_with(['[', '<']) => format!("{outer}{inner}"),
            inner => format!("{outer}.{inner}"),
        };
        self
    }

    pub(crate) fn of(self, name: &Text) -> Untranslated {
        Untranslated {
            name: name.clone(),
            field: self.field,
            why: self.why,
        }
    }
}

/// Says where something was refused.
pub(crate) trait At<T> {
    /// In this field.
    fn at(self, field: &str) -> Result<T, Refused>;
    /// In this item of a list.
    fn item(self, index: usize) -> Result<T, Refused>;
}

impl<T> At<T> for Result<T, Refused> {
    fn at(self, field: &str) -> Self {
        self.map_err(|refused| refused.within(field))
    }

    fn item(self, index: usize) -> Self {
        self.map_err(|refused| refused.within(&format!("[{index}]")))
    }
}

/// Refuses a field that is set where there is nothing that it could mean.
pub(crate) fn only_if(is_known: bool, field: &str, why: &str) -> Result<(), Refused> {
    match is_known {
        true => Ok(()),
        false => Err(Refused::new(field, why)),
    }
}

/// All items of a list, translated.
pub(crate) fn each<'w, W: 'w, T>(
    field: &str,
    list: impl IntoIterator<Item = &'w W>,
    mut translate: impl FnMut(&'w W) -> Result<T, Refused>,
) -> Result<Vec<T>, Refused> {
    let items = list.into_iter().enumerate();
    let translated: Result<Vec<T>, Refused> = items.map(|(index, item)| translate(item).item(index)).collect();
    translated.at(field)
}
