//! A filter in CEL, as Istio's Telemetry has it: `response.code >= 400 || connection.mtls == false`.
//!
//! The language is the `cel` crate's, the attributes are Envoy's. **What an evaluation can cost is settled when it is compiled**: there are no comprehensions
//! (nor are there in Envoy's), patterns are written out and compiled once, and of headers only those are looked at that are named. So it takes time in
//! proportion to the expression and to the texts that it looks at.
//!
//! An attribute that a request does not have is an error, which `||` and `&&` get over where the other side decides; an expression that ends in one is not
//! true. That is Envoy's rule, too.

mod attributes;
mod reading;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, LazyLock};

use cel::common::ast::IdedExpr;
use cel::extractors::This;
use cel::{Context, Env, Program, Value};
use regex::Regex;

use self::attributes::Attribute;
use self::reading::Reading;
use super::filter::told;
use crate::http::{Fact, Facts};

/// Longest expression, in bytes.
const MAX_LENGTH: usize = 4096;

/// The function that patterns become: its argument is the pattern's number.
const MATCHES_COMPILED: &str = "@matches";

/// An expression that is compiled.
#[derive(Clone)]
pub struct Expression(Arc<Compiled>);

struct Compiled {
    text: String,
    tree: IdedExpr,
    attributes: Vec<&'static Attribute>,
    /// Header fields that are named, by what they are a field of.
    headers: Vec<(&'static str, String, Fact)>,
    patterns: Arc<[Regex]>,
}

/// Why a text is no expression.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadExpression {
    /// More than [`MAX_LENGTH`].
    #[error("is longer than {MAX_LENGTH} bytes")]
    Long,
    /// Not CEL.
    #[error("is no expression of CEL: {0}")]
    Syntax(String),
    /// There is no such attribute.
    #[error("asks for `{0}`, which is no attribute of Envoy's")]
    Attribute(String),
    /// All of the headers.
    #[error("asks for all of `{0}`")]
    Headers(&'static str),
    /// There is no such function.
    #[error("calls `{0}`, which is not supported")]
    Function(String),
    /// A loop, or a value of a kind that nothing compares with.
    #[error("has {0}, which is not supported")]
    Construct(&'static str),
    /// No pattern.
    #[error("has the pattern `{0}`, which is none")]
    Pattern(String),
    /// It is only known later.
    #[error("has a pattern that is not written out")]
    ComputedPattern,
    /// It can't be the name of a field.
    #[error("asks for a field by `{0}`, which is no name")]
    Name(String),
}

impl BadExpression {
    /// What to do about it.
    pub fn remedy(&self) -> String {
        match self {
            Self::Long => "shorten it, or write several logs".to_owned(),
            Self::Syntax(_) => "write for example response.code >= 400".to_owned(),
            Self::Attribute(_) => format!("write one of: {}", attributes::names().join(", ")),
            Self::Headers(all) => format!("name the field: {all}['x-user'], or 'x-user' in {all}"),
            Self::Function(_) => format!("use operators, or one of: {}", reading::FUNCTIONS.join(", ")),
            Self::Construct(_) => "compare attributes with values, and join that by && and ||".to_owned(),
            Self::Pattern(_) | Self::ComputedPattern => "write for example request.path.matches('^/api/')".to_owned(),
            Self::Name(_) => "write for example request.headers['x-user']".to_owned(),
        }
    }
}

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Expression({:?})", self.text())
    }
}

impl PartialEq for Expression {
    fn eq(&self, other: &Self) -> bool {
        self.text() == other.text()
    }
}

impl Eq for Expression {}

static STANDARD: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::stdlib()));

impl Expression {
    /// Compiles a text.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, BadExpression> {
        if text.len() > MAX_LENGTH {
            return Err(BadExpression::Long);
        }
        let program = Program::compile(text).map_err(|errors| {
            let errors = errors.to_string();
            BadExpression::Syntax(errors.lines().next().unwrap_or_default().to_owned())
        })?;
        let mut reading = Reading::default();
        let tree = reading.read(program.expression())?;
        Ok(Self(Arc::new(Compiled {
            text: text.to_owned(),
            tree,
            attributes: reading.attributes,
            headers: reading.headers,
            patterns: reading.patterns.into(),
        })))
    }

    /// As it was written.
    pub fn text(&self) -> &str {
        &self.0.text
    }

    /// Whether it is true of a request.
    pub fn is_true(&self, facts: &dyn Facts) -> bool {
        let compiled = &*self.0;
        let mut context = Context::with_env(STANDARD.clone());
        for attribute in &compiled.attributes {
            if let Some(value) = attribute.value(facts) {
                context.add_variable_from_value(attribute.name, value);
            }
        }
        for all in attributes::HEADERS {
            let mut fields: HashMap<String, Value> = HashMap::new();
            for (_, name, fact) in compiled.headers.iter().filter(|(of, ..)| *of == all) {
                if let Some(value) = told(fact, facts) {
                    fields.insert(name.clone(), value.into());
                }
            }
            context.add_variable_from_value(all, fields);
        }
        if !compiled.patterns.is_empty() {
            let patterns = compiled.patterns.clone();
            let matches = move |This(text): This<Arc<String>>, number: i64| -> bool {
                let pattern = usize::try_from(number).ok().and_then(|number| patterns.get(number));
                pattern.is_some_and(|pattern| pattern.is_match(&text))
            };
            if context.add_function(MATCHES_COMPILED, matches).is_err() {
                return false;
            }
        }
        context.resolve(&compiled.tree) == Ok(Value::Bool(true))
    }

    /// What it asks for.
    pub(super) fn facts(&self) -> impl Iterator<Item = &Fact> {
        let attributes = self.0.attributes.iter().map(|attribute| &attribute.fact);
        attributes.chain(self.0.headers.iter().map(|(.., fact)| fact))
    }
}

#[cfg(test)]
mod tests;
