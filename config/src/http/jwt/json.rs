//! JSON that says one thing only: an object that names a field twice is none, since who reads it after us may take the other one.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// The object that `bytes` are; none if they are anything else.
pub fn json_object(bytes: &[u8]) -> Option<Map<String, Value>> {
    match serde_json::from_slice(bytes).ok()? {
        Strict(Value::Object(object)) => Some(object),
        Strict(_) => None,
    }
}

/// The claim of this name; what is within another behind a dot.
pub fn claim_at<'v>(claims: &'v Map<String, Value>, name: &str) -> Option<&'v Value> {
    let mut names = name.split('.');
    let first = claims.get(names.next()?)?;
    names.try_fold(first, |within, name| within.as_object()?.get(name))
}

struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Strict;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Strict, E> {
        Ok(Strict(Value::Null))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Strict, E> {
        Ok(Strict(value.into()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Strict, E> {
        Ok(Strict(value.into()))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Strict, E> {
        Ok(Strict(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Strict, E> {
        let number = Number::from_f64(value).ok_or_else(|| E::custom("a number out of range"))?;
        Ok(Strict(number.into()))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Strict, E> {
        Ok(Strict(value.into()))
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Strict, E> {
        Ok(Strict(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Strict, A::Error> {
        let mut list = Vec::new();
        while let Some(Strict(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(Strict(list.into()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Strict, A::Error> {
        let mut object = Map::new();
        while let Some((name, Strict(value))) = fields.next_entry::<String, Strict>()? {
            if object.insert(name, value).is_some() {
                return Err(A::Error::custom("a field is there twice"));
            }
        }
        Ok(Strict(object.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_object_that_says_one_thing_is_one() {
        let good = br#"{"a": [1, -2, 0.5, null, true, {"b": "c"}], "d": {"b": 1}}"#;
        let value = Value::Object(json_object(good).unwrap());
        assert_eq!(value, serde_json::from_slice::<Value>(good).unwrap());
        let deep = format!("{{\"a\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        for bad in [
            r#"{"a": 1, "a": 1}"#,
            r#"{"a": {"b": 1, "b": 2}}"#,
            r#"{"a": 1, "\u0061": 2}"#,
            "[]",
            "null",
            "\"a\"",
            "{} {}",
            "{",
            "",
            r#"{"a": 1e400}"#,
            r#"{'a': 1}"#,
            r#"{"a": 1,}"#,
            "{\"a\": NaN}",
            &deep,
        ] {
            assert!(json_object(bad.as_bytes()).is_none(), "{bad:.40}");
        }
        assert!(json_object(b"{\"a\": \"\xff\"}").is_none());
    }

    #[test]
    fn a_dot_leads_into_a_claim() {
        let claims = json_object(br#"{"a": {"b": {"c": 1}}, "a.b": 2, "d": [1]}"#).unwrap();
        assert_eq!(claim_at(&claims, "a.b.c"), Some(&Value::from(1)));
        for none in ["a.x", "d.0", "a.b.c.d", "", "."] {
            assert_eq!(claim_at(&claims, none), None, "{none}");
        }
    }
}
