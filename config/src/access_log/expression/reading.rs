//! Reads the tree of an expression: notes what it asks for, compiles its patterns, and refuses what would not be bounded.

use cel::common::ast::{CallExpr, Expr, IdedExpr, LiteralValue, SelectExpr, operators};
use cel::common::types::{CelInt, CelString};
use regex::Regex;

use super::attributes::{self, Attribute, HEADERS};
use super::{BadExpression, MATCHES_COMPILED, MAX_LEVELS};
use crate::http::{Fact, Field};

/// Functions that may be called.
pub(super) const FUNCTIONS: [&str; 12] = [
    "matches",
    "startsWith",
    "endsWith",
    "contains",
    "size",
    "int",
    "uint",
    "double",
    "string",
    "bool",
    "duration",
    "timestamp",
];

/// Operators that may be used.
const OPERATORS: [&str; 17] = [
    operators::CONDITIONAL,
    operators::LOGICAL_AND,
    operators::LOGICAL_OR,
    operators::LOGICAL_NOT,
    operators::SUBSTRACT,
    operators::ADD,
    operators::MULTIPLY,
    operators::DIVIDE,
    operators::MODULO,
    operators::EQUALS,
    operators::NOT_EQUALS,
    operators::GREATER_EQUALS,
    operators::LESS_EQUALS,
    operators::GREATER,
    operators::LESS,
    operators::NEGATE,
    operators::INDEX,
];

/// What was found so far.
#[derive(Default)]
pub(super) struct Reading {
    pub(super) attributes: Vec<&'static Attribute>,
    pub(super) headers: Vec<(&'static str, String, Fact)>,
    pub(super) patterns: Vec<Regex>,
}

/// The segments of a name: `a.b.c`.
fn name(expr: &Expr) -> Option<Vec<&str>> {
    match expr {
        Expr::Ident(name) => Some(vec![name]),
        Expr::Select(SelectExpr {
            operand,
            field,
            test: false,
        }) => {
            let mut segments = name(&operand.expr)?;
            segments.push(field);
            Some(segments)
        }
        _ => None,
    }
}

/// Which of the maps of fields it is.
fn map_of_fields(expr: &Expr) -> Option<&'static str> {
    let name = name(expr)?.join(".");
    HEADERS.into_iter().find(|all| *all == name)
}

fn literal(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::Literal(LiteralValue::String(text)) => Some(text.inner()),
        _ => None,
    }
}

fn text(value: String) -> Expr {
    Expr::Literal(LiteralValue::String(CelString::from(value)))
}

impl Reading {
    /// Reads a tree, and returns what is evaluated in its place.
    pub(super) fn read(&mut self, node: &IdedExpr, level: usize) -> Result<IdedExpr, BadExpression> {
        if level == MAX_LEVELS {
            return Err(BadExpression::Deep);
        }
        let construct = |what| Err(BadExpression::Construct(what));
        let expr = match &node.expr {
            Expr::Literal(_) => node.expr.clone(),
            Expr::Ident(_) => self.attribute(&node.expr)?,
            Expr::Select(select) => self.select(&node.expr, select)?,
            Expr::Call(call) => self.call(call, level)?,
            Expr::List(list) => {
                let mut list = list.clone();
                for element in &mut list.elements {
                    *element = self.read(element, level + 1)?;
                }
                Expr::List(list)
            }
            Expr::Comprehension(_) => return construct("a loop"),
            Expr::Map(_) | Expr::Struct(_) => return construct("a map"),
            Expr::Unspecified => return construct("a hole"),
        };
        Ok(IdedExpr { id: node.id, expr })
    }

    fn select(&mut self, expr: &Expr, select: &SelectExpr) -> Result<Expr, BadExpression> {
        match map_of_fields(&select.operand.expr) {
            Some(all) => {
                let mut select = select.clone();
                select.field = self.field(all, &select.field)?;
                Ok(Expr::Select(select))
            }
            None if select.test => Err(BadExpression::Construct("has() of what is no field of headers")),
            None => self.attribute(expr),
        }
    }

    fn attribute(&mut self, expr: &Expr) -> Result<Expr, BadExpression> {
        let Some(segments) = name(expr) else {
            return Err(BadExpression::Construct("a field of what is no attribute"));
        };
        let name = segments.join(".");
        if let Some(all) = HEADERS.into_iter().find(|all| *all == name) {
            return Err(BadExpression::Headers(all));
        }
        match attributes::find(&name) {
            Some(attribute) => {
                if !self.attributes.iter().any(|known| known.name == attribute.name) {
                    self.attributes.push(attribute);
                }
            }
            None if attributes::is_never(&name) => {}
            None => return Err(BadExpression::Attribute(name)),
        }
        Ok(expr.clone())
    }

    /// Notes a field that is asked for, and returns its name as Envoy's maps have it.
    fn field(&mut self, all: &'static str, name: &str) -> Result<String, BadExpression> {
        let name = name.to_ascii_lowercase();
        let bad = || BadExpression::Name(name.clone());
        let fact = match (all, name.as_str()) {
            ("request.headers", ":method") => Fact::Request(Field::Method, None),
            ("request.headers", ":path") => Fact::Request(Field::Path, None),
            ("request.headers", ":authority" | "host") => Fact::Request(Field::Authority, None),
            ("request.headers", ":scheme") => Fact::Request(Field::Scheme, None),
            ("response.headers", ":status") => Fact::Status,
            ("request.headers", name) => Fact::Request(Field::Header(name.try_into().map_err(|_| bad())?), None),
            ("response.headers", name) => Fact::Response(name.try_into().map_err(|_| bad())?, None),
            (_, name) => Fact::Trailer(name.try_into().map_err(|_| bad())?, None),
        };
        self.headers.push((all, name.clone(), fact));
        Ok(name)
    }

    fn call(&mut self, call: &CallExpr, level: usize) -> Result<Expr, BadExpression> {
        let function = call.func_name.as_str();
        if function == "matches" {
            return self.matches(call, level);
        }
        // Which of the arguments is a map of fields, and which the name in it.
        let places = match function {
            operators::INDEX => Some((0, 1)),
            operators::IN => Some((1, 0)),
            _ => None,
        };
        if let Some((map, key)) = places
            && let (Some(all), Some(key_of)) = (
                call.args.get(map).and_then(|arg| map_of_fields(&arg.expr)),
                call.args.get(key),
            )
        {
            let name = literal(&key_of.expr).ok_or(BadExpression::Headers(all))?;
            let name = self.field(all, name)?;
            let mut call = call.clone();
            call.args[key].expr = text(name);
            return Ok(Expr::Call(call));
        }
        let is_known = function == operators::IN || OPERATORS.contains(&function) || FUNCTIONS.contains(&function);
        if !is_known {
            return Err(BadExpression::Function(function.to_owned()));
        }
        let mut call = call.clone();
        for node in call.target.iter_mut().map(|target| &mut **target).chain(&mut call.args) {
            *node = self.read(node, level + 1)?;
        }
        Ok(Expr::Call(call))
    }

    /// `text.matches('pattern')`, or `matches(text, 'pattern')`.
    fn matches(&mut self, call: &CallExpr, level: usize) -> Result<Expr, BadExpression> {
        let (target, pattern) = match (&call.target, &call.args[..]) {
            (Some(target), [pattern]) => (&**target, pattern),
            (None, [target, pattern]) => (target, pattern),
            _ => return Err(BadExpression::Function("matches with such arguments".to_owned())),
        };
        let written = literal(&pattern.expr).ok_or(BadExpression::ComputedPattern)?;
        let compiled = Regex::new(written).map_err(|_| BadExpression::Pattern(written.to_owned()))?;
        let number = i64::try_from(self.patterns.len()).unwrap_or(i64::MAX);
        self.patterns.push(compiled);
        Ok(Expr::Call(CallExpr {
            func_name: MATCHES_COMPILED.to_owned(),
            target: Some(Box::new(self.read(target, level + 1)?)),
            args: vec![IdedExpr {
                id: pattern.id,
                expr: Expr::Literal(LiteralValue::Int(CelInt::from(number))),
            }],
        }))
    }
}
