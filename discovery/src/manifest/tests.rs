use super::*;
use tombolo_clusterset::endpoint::{IpFamily, Protocol};
use tombolo_clusterset::export::SessionAffinity;
use tombolo_clusterset::{LossPolicy, Readiness};

const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec:\n  ports:\n  - {name: http, port: 80, targetPort: 8080}\n";
const EXPORT: &str = "apiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\nmetadata: {name: web, namespace: shop}\n";

fn file(name: &str, text: &str) -> ManifestFile {
    ManifestFile {
        name: name.to_owned(),
        content: Ok(text.as_bytes().to_vec()),
    }
}

fn key(text: &str) -> ServiceKey {
    ServiceKey::parse(text).unwrap()
}

fn slice(body: &str) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: web-1, namespace: shop, labels: {{kubernetes.io/service-name: web}}}}\n{body}"
    )
}

#[test]
fn a_bad_document_leaves_its_neighbours_alone() {
    let text = format!("{SERVICE}---\nkind: [oops\n  x: y\n---\n{EXPORT}");
    let found = read(&[
        file("b.yaml", &text),
        file("a.yaml", "{{{{"),
        ManifestFile {
            name: "c.yaml".into(),
            content: Err("permission denied".into()),
        },
    ]);
    assert_eq!(found.services.keys().collect::<Vec<_>>(), [&key("shop/web")]);
    assert_eq!(found.exports.keys().collect::<Vec<_>>(), [&key("shop/web")]);
    let places: Vec<(&str, u32)> = found
        .errors
        .iter()
        .map(|error| (error.file.as_str(), error.line))
        .collect();
    assert_eq!(places.len(), 3, "{:?}", found.errors);
    assert_eq!(places[0], ("a.yaml", 1));
    assert_eq!(places[1].0, "b.yaml");
    assert!((8..=10).contains(&places[1].1), "{:?}", found.errors);
    assert_eq!(places[2], ("c.yaml", 0));
}

#[test]
fn each_mistake_is_named_with_its_line() {
    let service = |spec: &str| {
        format!("apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop}}\nspec:\n{spec}")
    };
    let table: &[(String, u32, &str)] = &[
        (
            service("  ports:\n  - port: 0\n"),
            6,
            "port 0 is out of range; use 1 to 65535",
        ),
        (
            service("  ports:\n  - port: 70000\n"),
            6,
            "port 70000 is out of range; use 1 to 65535",
        ),
        (
            service("  ports:\n  - port: 80\n    protocol: HTTP\n"),
            7,
            "protocol 'HTTP' is not known; use TCP, UDP or SCTP",
        ),
        (
            service("  ports:\n  - {port: 80, name: A_b}\n"),
            6,
            "port name 'A_b' has 'A' at position 0",
        ),
        (
            service("  ports:\n  - port: 80\n  - port: 81\n"),
            1,
            "Service shop/web has several ports, and one has no name",
        ),
        (
            service("  ports:\n  - {port: 80, name: a}\n  - {port: 80, name: b}\n"),
            1,
            "Service shop/web has port TCP/80 twice",
        ),
        (
            service("  ports:\n  - {port: 80, name: a}\n  - {port: 81, name: a}\n"),
            1,
            "two ports named 'a'",
        ),
        (service("  type: ClusterIP\n"), 1, "Service shop/web has no ports"),
        (
            service("  ports: [{port: 80}]\n  ipFamilies: [IPv4, IPv5]\n"),
            6,
            "address family 'IPv5' is not known; use IPv4 or IPv6",
        ),
        (
            service("  ports: [{port: 80}]\n  ipFamilies: [IPv4, IPv4]\n"),
            1,
            "names an address family twice",
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: Web}\n".into(),
            3,
            "service name 'Web' has 'W' at position 0",
        ),
        ("kind: Service\n".into(), 1, "has no apiVersion or no kind"),
        (
            "apiVersion: v2\nkind: Service\nmetadata: {name: web}\n".into(),
            1,
            "apiVersion 'v2' of Service is not known",
        ),
        (
            slice("addressType: IPv4\nendpoints:\n- addresses: [127.0.0.300]\n"),
            6,
            "'127.0.0.300' is no IP address",
        ),
        (
            slice("addressType: IPv4\nendpoints:\n- addresses: ['::1']\n"),
            1,
            "addressType IPv4 and the address ::1",
        ),
        (
            slice("addressType: IPv4\nendpoints:\n- addresses: [0.0.0.0]\n"),
            6,
            "0.0.0.0 cannot be the address of a backend",
        ),
        (
            slice("addressType: IPv4\nendpoints:\n- addresses: []\n"),
            1,
            "an endpoint without an address",
        ),
        (
            slice("addressType: FQDN\n"),
            4,
            "address family 'FQDN' is not known",
        ),
        (
            slice("addressType: IPv4\nports:\n- {name: a, port: 1}\n- {name: a, port: 2}\n"),
            1,
            "two ports of one name",
        ),
        (
            slice("addressType: IPv4\n").replace("kubernetes.io/service-name", "other"),
            1,
            "belongs to no Service; give it the label",
        ),
        (
            EXPORT.replace("shop}", "shop, annotations: {tombolo.io/on-loss: drop}}"),
            1,
            "tombolo.io/on-loss is 'drop'; use keep, degrade or withdraw",
        ),
        (
            EXPORT.replace("shop}", "shop, creationTimestamp: yesterday}"),
            3,
            "creationTimestamp 'yesterday' is no RFC 3339 time",
        ),
    ];
    for (text, line, reason) in table {
        let found = read(&[file("x.yaml", text)]);
        assert_eq!(found.errors.len(), 1, "{text}\n{found:?}");
        let error = &found.errors[0];
        assert!(error.reason.contains(reason), "{text}\nfound: {error}");
        assert_eq!(error.line, *line, "{text}\nfound: {error}");
    }
}

#[test]
fn a_service_is_read_as_the_api_server_would_complete_it() {
    let text = "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\nspec:\n  sessionAffinity: ClientIP\n  ports:\n  - port: 53\n    protocol: UDP\n    appProtocol: dns\n";
    let found = read(&[file("x.yaml", text)]);
    assert_eq!(found.errors, []);
    let service = &found.services[&key("default/web")];
    assert_eq!(service.session_affinity, SessionAffinity::ClientIp);
    assert_eq!(service.session_affinity_timeout_seconds, Some(10_800));
    assert_eq!(service.internal_traffic_policy, "Cluster");
    assert_eq!(
        (service.ports[0].protocol, service.ports[0].port),
        (Protocol::Udp, 53)
    );
    assert_eq!(service.ports[0].app_protocol, "dns");
}

#[test]
fn kinds_of_service() {
    for (spec, kind) in [
        ("{clusterIP: None}", ServiceKind::Headless),
        (
            "{clusterIP: 10.0.0.1, ports: [{port: 1}]}",
            ServiceKind::ClusterIp,
        ),
        ("{type: NodePort, ports: [{port: 1}]}", ServiceKind::ClusterIp),
        ("{type: LoadBalancer, ports: [{port: 1}]}", ServiceKind::ClusterIp),
        (
            "{type: ExternalName, externalName: example.com}",
            ServiceKind::ExternalName,
        ),
    ] {
        let text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop}}\nspec: {spec}\n"
        );
        let found = read(&[file("x.yaml", &text)]);
        assert_eq!(found.errors, [], "{spec}");
        assert_eq!(found.services[&key("shop/web")].kind, kind, "{spec}");
    }
}

#[test]
fn conditions_become_readiness() {
    let table = [
        ("", Readiness::Ready),
        ("ready: true", Readiness::Ready),
        ("ready: false", Readiness::NotReady),
        (
            "ready: false, serving: true, terminating: true",
            Readiness::Terminating,
        ),
        (
            "ready: false, serving: false, terminating: true",
            Readiness::NotReady,
        ),
        ("ready: true, serving: true, terminating: false", Readiness::Ready),
    ];
    for (conditions, expected) in table {
        let text = slice(&format!(
            "addressType: IPv4\nports: [{{name: http, port: 8080}}]\nendpoints:\n- {{addresses: [127.0.0.1], conditions: {{{conditions}}}, hostname: web-0, zone: z1, nodeName: n1}}\n"
        ));
        let found = read(&[file("x.yaml", &text)]);
        assert_eq!(found.errors, [], "{conditions}");
        let read = &found.slices[&key("shop/web")]["web-1"].slice;
        assert_eq!(read.family, IpFamily::V4);
        assert_eq!(read.port("http", Protocol::Tcp), Some(8080));
        let endpoint = &read.endpoints[0];
        assert_eq!(endpoint.readiness, expected, "{conditions}");
        assert_eq!(
            endpoint.hostname.as_ref().map(|name| name.as_str()),
            Some("web-0")
        );
        assert_eq!((endpoint.zone.as_str(), endpoint.node.as_str()), ("z1", "n1"));
    }
}

#[test]
fn an_export_carries_its_choices() {
    let text = "apiVersion: multicluster.x-k8s.io/v1alpha1\nkind: ServiceExport\nmetadata:\n  name: web\n  namespace: shop\n  uid: u-1\n  creationTimestamp: 1970-01-01T00:00:02Z\n  annotations: {tombolo.io/on-loss: keep}\nspec:\n  exportedLabels: {team: a}\n  exportedAnnotations: {note: b}\n";
    let found = read(&[file("x.yaml", text)]);
    assert_eq!(found.errors, []);
    let export = &found.exports[&key("shop/web")];
    assert_eq!(
        (export.uid.as_deref(), export.created_ms),
        (Some("u-1"), Some(2_000))
    );
    assert_eq!(export.loss_policy, LossPolicy::Keep);
    assert_eq!(
        (
            export.labels["team"].as_str(),
            export.annotations["note"].as_str()
        ),
        ("a", "b")
    );
}

#[test]
fn the_first_of_two_stands() {
    let found = read(&[
        file("b.yaml", EXPORT),
        file("a.yaml", &format!("{EXPORT}---\n{EXPORT}")),
    ]);
    assert_eq!(found.exports.len(), 1);
    let errors: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
    assert_eq!(
        errors,
        [
            "a.yaml:5: ServiceExport shop/web stands already at a.yaml:1; remove one of the two",
            "b.yaml:1: ServiceExport shop/web stands already at a.yaml:1; remove one of the two",
        ]
    );
}

#[test]
fn other_kinds_are_noted_and_ignored() {
    let found = read(&[file(
        "x.yaml",
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\n",
    )]);
    assert_eq!(found.errors, []);
    assert_eq!(
        found.ignored,
        [("x.yaml".to_owned(), 1, "apps/v1 Deployment".to_owned())]
    );
}

#[test]
fn alias_bombs_and_foreign_bytes_are_errors() {
    let mut bomb = String::from("apiVersion: v1\nkind: Service\na0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
        bomb.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
    }
    let found = read(&[
        file("bomb.yaml", &bomb),
        ManifestFile {
            name: "latin.yaml".into(),
            content: Ok(b"a: 1\nb: \xff\n".to_vec()),
        },
        file("good.yaml", SERVICE),
    ]);
    assert_eq!(found.services.len(), 1);
    assert_eq!(found.errors.len(), 2, "{:?}", found.errors);
    assert_eq!(
        (found.errors[1].file.as_str(), found.errors[1].line),
        ("latin.yaml", 2)
    );
}
