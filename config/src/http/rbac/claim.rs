//! Conditions on what a token claims (`type.matcher.v3.MetadataMatcher` on what Envoy's `jwt_authn` leaves of it, and `ValueMatcher`).

use serde_json::Value;

use super::super::TextMatch;
use crate::Text;

/// A condition on one claim.
#[derive(Clone, Debug)]
pub struct ClaimMatch {
    /// Its name, and what is within it: `["realm", "role"]`.
    pub path: Vec<Text>,
    /// What of it.
    pub value: ValueMatch,
}

/// A condition on a value.
#[derive(Clone, Debug)]
pub enum ValueMatch {
    /// It is null.
    Null,
    /// It is this number.
    Number(f64),
    /// It is true, or false.
    Bool(bool),
    /// It is a text like this.
    Text(TextMatch),
    /// It is there, or is not.
    Present(bool),
    /// It is a list, and one of its values is so.
    OneOf(Box<ValueMatch>),
    /// One of these holds.
    Either(Vec<ValueMatch>),
}

impl ClaimMatch {
    /// Whether it holds; none: there was no token.
    pub fn matches(&self, claims: Option<&Value>) -> bool {
        let found = claims.and_then(|claims| {
            let mut path = self.path.iter();
            // A list has no names: `get` would take none of a text.
            path.try_fold(claims, |within, name| within.as_object()?.get(&**name))
        });
        self.value.matches(found)
    }
}

impl ValueMatch {
    /// Whether `value` fulfils it; none: it is not there.
    pub fn matches(&self, value: Option<&Value>) -> bool {
        match self {
            Self::Null => matches!(value, Some(Value::Null)),
            Self::Number(number) => value.and_then(Value::as_f64) == Some(*number),
            Self::Bool(expected) => value.and_then(Value::as_bool) == Some(*expected),
            Self::Text(pattern) => value.and_then(Value::as_str).is_some_and(|text| pattern.matches(text)),
            Self::Present(expected) => value.is_some() == *expected,
            Self::OneOf(one) => {
                let list = value.and_then(Value::as_array);
                list.is_some_and(|list| list.iter().any(|value| one.matches(Some(value))))
            }
            Self::Either(either) => either.iter().any(|one| one.matches(value)),
        }
    }
}
