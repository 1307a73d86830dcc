//! How problems are told: in which words and where, and at what cost if there are very many.

use std::time::{Duration, Instant};

use underpass_config::{Config, ConfigError, TextPosition};

use super::problems;

#[test]
fn a_problem_says_where_in_the_text_it_is() {
    let yaml = "node: {}\nworkloads:\n\n- name: a\n  namespace: shop\n- name: b\n  namespace: shop\n  addresses: [x]\n";
    assert_eq!(
        problems(yaml)[0].position,
        Some(TextPosition { line: 6, column: 3 }),
        "where the workload begins"
    );
    let yaml = "node: {}\nworkloads:\n- name: a\n  namespace: shop\n  locality:\n    regoin: eu\n";
    assert_eq!(
        problems(yaml)[0].position,
        Some(TextPosition { line: 6, column: 5 }),
        "where the field is"
    );
}

#[test]
fn errors_are_written_for_an_operator() {
    let error = Config::from_yaml("workloads:\n- {name: a, namespace: b, adresses: []}").unwrap_err();
    assert!(matches!(error, ConfigError::Malformed(_)));
    let expected = "the configuration can't be read beyond this:\n\
                    line 2, column 27: workloads[0].adresses: \"adresses\": there is no such field; \
                    did you mean `addresses`? known: name, ";
    assert!(error.to_string().starts_with(expected), "{error}");

    let error = Config::from_yaml("node: {workers: 0}\nworkloads:\n- {name: a, namespace: b, addresses: [\"x\\ny\"]}")
        .unwrap_err();
    assert!(matches!(error, ConfigError::Invalid(_)));
    let expected = "the configuration has 2 problems:\n\
                    line 1, column 7: node.workers: \"0\": is not a valid number here; write a whole number from 1 to 1024\n\
                    line 3, column 3: workloads[0].addresses[0]: \"x\\ny\": is not an IP address; \
                    write an IPv4 or IPv6 address without port or prefix length";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn words_of_the_document_can_not_break_a_line() {
    let yaml = "
workloads: [{name: \"work\\nload\", namespace: shop}]
services: [{name: web, namespace: shop, ports: [{port: 80}], endpoints: [{workload: shop/workload, ports: {\"\\e[2J\": 1}}]}]";
    let error = Config::from_yaml(yaml).unwrap_err();
    let shown = error.to_string();
    assert_eq!(shown.lines().count(), 1 + error.problems().len());
    assert!(
        shown.contains("did you mean `shop/work\\nload`?") && shown.contains("ports.\\u{1b}[2J:"),
        "{shown}"
    );
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = Config::load("/nonexistent/underpass.yaml".as_ref()).unwrap_err();
    let expected = "cannot read the configuration file /nonexistent/underpass.yaml: No such file";
    assert!(error.to_string().starts_with(expected), "{error}");
    assert!(error.problems().is_empty());
}

#[test]
fn a_value_that_is_very_long_is_shortened() {
    let found = problems(&format!("node: {{log: '', name: '{} '}}", "ä".repeat(1000)));
    assert_eq!(found[0].value, format!("{}…", "ä".repeat(80)));
}

/// A generator's systematic mistake must cost neither memory nor an afternoon of comparing names.
#[test]
fn very_many_problems_are_counted_and_soon() {
    let mut yaml = "workloads:\n".to_owned();
    for index in 0..3000 {
        yaml += &format!("- {{name: workload-{index}, namespace: shop}}\n");
    }
    yaml += "services:\n- name: web\n  namespace: shop\n  ports: [{port: 80}]\n  endpoints:\n";
    for index in 0..3000 {
        yaml += &format!("  - shop/workloat-{index}\n");
    }
    let start = Instant::now();
    let error = Config::from_yaml(&yaml).unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
    assert_eq!(error.problems().len(), 1000);
    assert!(error.problems()[0].remedy.contains("did you mean `shop/workload-0`?"));
    assert!(error.to_string().starts_with("the configuration has 3000 problems:\n"));
    assert!(error.to_string().ends_with("\nand 2000 more"));
}

/// 100 × 100 × 100 × 100 values from a few lines.
#[test]
fn an_alias_bomb_is_refused() {
    let many = |item: &str| vec![item; 99].join(", ");
    let yaml = format!(
        "authorization_policies:
- name: bomb
  namespace: n
  scope: GLOBAL
  groups:
  - &group {{rules: [&rule {{matches: [&match {{principals: &list [a, {a}]}}, {m}]}}, {r}]}}
  - {{rules: [{r}]}}
  - {g}",
        a = many("a"),
        m = many("*match"),
        r = many("*rule"),
        g = vec!["*group"; 99].join("\n  - "),
    );
    assert_refused_for_its_aliases(&yaml);
}

/// 1000 × 5000 values, without an alias inside of an alias.
#[test]
fn a_wide_alias_bomb_is_refused_too() {
    let yaml = format!(
        "authorization_policies:
- {{name: bomb, namespace: n, scope: GLOBAL, groups: [{{rules: [{{matches: [{{principals: &list [{}]}}, {}]}}]}}]}}",
        vec!["a"; 1000].join(", "),
        vec!["{principals: *list}"; 5000].join(", "),
    );
    assert_refused_for_its_aliases(&yaml);
}

fn assert_refused_for_its_aliases(yaml: &str) {
    let found = problems(yaml);
    assert_eq!(found.len(), 1);
    let expected = "the aliases up to here add more than a document may hold";
    assert!(found[0].problem.contains(expected), "{}", found[0]);
}
