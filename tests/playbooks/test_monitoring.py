"""``playbooks/monitoring.yml`` beside ``playbooks/site.yml``: a real server that restarts again and again, Debian's
Prometheus and Alertmanager on another host, and somebody who hears of it.
"""

from __future__ import annotations

import dataclasses
import json
import re
import secrets
import shutil
import subprocess
import sys
import time
import urllib.parse

import pytest
import yaml
from cluster_fixture import TINY
from hosts import REPOSITORY, Site, changed, host, ssh_key
from traffic import KEY, wait_until

pytestmark = [pytest.mark.systemd, pytest.mark.slow, pytest.mark.timeout(900)]

TOKEN = "a-token-of-the-tests"
ENVIRONMENT = TINY | {
    "model_source": "/opt/qwen3/models/complaints-tiny",
    "deployment_type": "server",
    "resource_limits": {"cpu_cores": 1, "memory_gb": 0.75, "disk_gb": 1},
    "replicas": {"min": 2, "max": 2},
    "serving": {"metrics_port": 9000, "api_keys_file": "/etc/qwen3/api_keys"},
    "alerts": {"low_qps": 0.25},
}
PROMETHEUS = "http://127.0.0.1:9090"

# Who is called, on the monitor itself: each message's path, token and content, a line each.
RECEIVER = """
import http.server, json
class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with open("/run/messages", "a") as messages:
            print(json.dumps([self.path, self.headers["Authorization"], content]), file=messages)
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("", 5001), Receiver).serve_forever()
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory, wheelhouse):
    folder = tmp_path_factory.mktemp("site")
    key = ssh_key(folder)
    (folder / "keys").write_text(f"tests:{KEY}\n")
    (folder / "token").write_text(f"{TOKEN}\n")
    variables = {
        "model_server_api_keys_file": str(folder / "keys"),
        "model_server_wheelhouse": str(wheelhouse),
        "model_server_model": str(REPOSITORY / "models/complaints-tiny"),
        "prometheus_scrape_interval": "2s",
        "prometheus_evaluation_interval": "2s",
        "alertmanager_critical": [
            {"webhook": "http://127.0.0.1:5001/critical", "credentials_file": str(folder / "token")},
            {"email": "oncall@example.org"},
        ],
        "alertmanager_warning": [{"webhook": "http://127.0.0.1:5001/warning"}],
        "alertmanager_smarthost": "127.0.0.1:2525",
        "alertmanager_email_from": "alerts@example.org",
        "alertmanager_smtp_require_tls": False,
        "alertmanager_group_wait": "1s",
        "alertmanager_group_interval": "5s",
    }
    name = secrets.token_hex(3)
    with (
        host(f"qwen3-monitored-{name}", key, "model_server", "load_balancer") as server,
        host(f"qwen3-monitor-{name}", key, "monitor") as monitor,
    ):
        site = Site(folder, [server, monitor], ENVIRONMENT, key)
        site.words = ("-e", json.dumps(variables))
        monitor.run("systemd-run", "--unit=receiver", "python3", "-c", RECEIVER)
        mail = ("-m", "smtpd", "-n", "-c", "DebuggingServer", "127.0.0.1:2525")
        monitor.run("systemd-run", "--unit=mail", "python3", "-u", "-W", "ignore", *mail)
        for play, words in (("site", ()), ("monitoring", ("--check", "--diff")), ("monitoring", ())):
            code, said = site.play(play, *words)
            assert code == 0, said
        yield site


def ask(monitor, path, **parameters):
    """What Prometheus' API answers."""
    query = urllib.parse.urlencode(parameters)
    return json.loads(monitor.run("curl", "-sSf", f"{PROMETHEUS}/api/v1/{path}?{query}"))["data"]


def value(monitor, query):
    """Of the one series that ``query`` finds, or None."""
    found = ask(monitor, "query", query=query)["result"]
    assert len(found) <= 1, found
    return float(found[0]["value"][1]) if found else None


def alertmanagers(monitor):
    return {each["url"] for each in ask(monitor, "alertmanagers")["activeAlertmanagers"]}


def messages(monitor, path, name):
    """The alerts of ``name`` that were sent to ``path``, with the token that came with them."""
    lines = monitor.run("sh", "-c", "cat /run/messages 2>/dev/null", check=False).splitlines()
    for to, token, content in map(json.loads, lines):
        for alert in content["alerts"]:
            if (to, alert["labels"]["alertname"]) == (path, name):
                yield token, alert


def state(*servers):
    """A fingerprint of what is installed and configured."""
    command = (
        "find /etc /opt /usr /var/lib -newermt @0 -not -path '/var/lib/*/*' -printf '%p %T@\\n' | sort | sha256sum"
    )
    return [server.run("sh", "-c", command) for server in servers]


def test_every_target_is_up_after_two_commands_and_a_third_changes_nothing(site):
    server, monitor = site.servers
    expected = {
        ("qwen3-inference", f"{server.name}-1", server.name): f"http://{server.address}:9000/metrics",
        ("qwen3-inference", f"{server.name}-2", server.name): f"http://{server.address}:9001/metrics",
        ("node", server.name, server.name): f"http://{server.address}:9100/metrics",
        ("node", monitor.name, monitor.name): f"http://{monitor.address}:9100/metrics",
        ("haproxy", server.name, server.name): f"http://{server.address}:8405/metrics",
        ("prometheus", monitor.name, monitor.name): "http://127.0.0.1:9090/metrics",
        ("alertmanager", monitor.name, monitor.name): "http://127.0.0.1:9093/metrics",
    }

    def health():
        return {
            (each["labels"]["job"], each["labels"]["instance"], each["labels"]["host"]): (
                each["scrapeUrl"],
                each["health"],
            )
            for each in ask(monitor, "targets")["activeTargets"]
        }

    wait_until(lambda: health() == {target: (url, "up") for target, url in expected.items()}, "every target is up")
    assert alertmanagers(monitor) == {"http://127.0.0.1:9093/api/v2/alerts"}

    code, said = site.play("monitoring")
    assert (code, changed(said)) == (0, 0), said
    code, said = site.play("monitoring", "--check", "--diff")
    assert (code, changed(said)) == (0, 0), said


def test_the_rules_are_those_that_the_project_renders_for_the_environment(site):
    _, monitor = site.servers
    command = [sys.executable, "-m", "monitoring.render", site.folder / "site.yml"]
    rendered = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout

    assert monitor.run("cat", "/etc/prometheus/qwen3.rules.yml") == rendered
    groups = {group["name"]: group["rules"] for group in ask(monitor, "rules")["groups"]}
    assert {name: [rule["name"] for rule in rules] for name, rules in groups.items()} == {
        group["name"]: [rule.get("record", rule.get("alert")) for rule in group["rules"]]
        for group in yaml.safe_load(rendered)["groups"]
    }
    assert {rule["name"]: rule["query"] for rule in groups["qwen3_alerts"]}["low_qps"].endswith(" < 0.25")
    assert {rule["health"] for rules in groups.values() for rule in rules} == {"ok"}


def test_a_server_that_systemd_starts_again_and_again_calls_somebody(site):
    server, monitor = site.servers
    unit, instance = "qwen3@1.service", f"{server.name}-1"
    signal = f'instance:qwen3_restarts:sum1h{{instance="{instance}"}}'
    counted = f'node_systemd_service_restart_total{{instance="{instance}"}}'
    firing = f'ALERTS{{alertname="pod_restart",alertstate="firing",instance="{instance}"}}'
    server.run("systemctl", "reset-failed", unit)  # all five starts that systemd allows within five minutes
    wait_until(lambda: value(monitor, signal) == 0, "no restarts are known")

    def kill(times):
        for _ in range(times):
            before = server.property(unit, "MainPID")
            server.run("kill", "-9", before)
            # At once, before it could answer a scrape.
            wait_until(lambda pid=before: server.property(unit, "MainPID") not in {pid, "0"}, "started again")

    kill(3)
    wait_until(lambda: value(monitor, signal) == 3, "three restarts are known")
    assert value(monitor, firing) is None
    assert list(messages(monitor, "/critical", "pod_restart")) == []

    kill(1)
    wait_until(lambda: value(monitor, firing) == 1, "the alert fires")
    wait_until(lambda: list(messages(monitor, "/critical", "pod_restart")), "somebody is called")
    assert server.property(unit, "NRestarts") == "4"
    assert value(monitor, counted) == 4
    assert value(monitor, signal) == 4
    # Without systemd's count nobody would know: the servers that were killed did not live to tell.
    assert value(monitor, f'changes(qwen3_start_time_seconds{{instance="{instance}"}}[1h])') <= 2

    [(token, alert)] = messages(monitor, "/critical", "pod_restart")
    assert token == f"Bearer {TOKEN}"
    assert alert["status"] == "firing"
    assert alert["labels"] == {
        "alertname": "pod_restart",
        "severity": "critical",
        "job": "qwen3-inference",
        "instance": instance,
        "host": server.name,
    }
    assert alert["annotations"]["summary"] == "The server or its engine keeps restarting"
    assert alert["annotations"]["runbook_url"].endswith("/pod_restart.md")
    mail = monitor.run("journalctl", "--no-pager", "-o", "cat", "-u", "mail")
    assert "To: oncall@example.org" in mail
    assert "pod_restart" in mail

    # It has been back for longer than it takes to start, and the other instance was never away.
    wait_until(lambda: server.property(unit, "ActiveState") == "active", "the server is back")
    assert server.property("qwen3@2.service", "NRestarts") == "0"


def test_warnings_of_a_host_in_trouble_are_seen_and_not_sent_and_others_are(site):
    """After the test above, whose critical alert still stands."""
    server, monitor = site.servers
    for name in (server.name, "elsewhere"):
        labels = ("alertname=memory_usage", "severity=warning", "job=qwen3-inference", f"host={name}")
        monitor.run("amtool", "--alertmanager.url=http://127.0.0.1:9093", "alert", "add", *labels)
    labels = ("alertname=unknown", "severity=none")
    monitor.run("amtool", "--alertmanager.url=http://127.0.0.1:9093", "alert", "add", *labels)

    wait_until(lambda: list(messages(monitor, "/warning", "memory_usage")), "the warning is sent")
    assert {alert["labels"]["host"] for _, alert in messages(monitor, "/warning", "memory_usage")} == {"elsewhere"}
    assert {token for token, _ in messages(monitor, "/warning", "memory_usage")} == {None}
    alerts = json.loads(monitor.run("curl", "-sSf", "http://127.0.0.1:9093/api/v2/alerts"))
    seen = {(each["labels"]["alertname"], each["labels"].get("host")): each for each in alerts}
    assert seen["memory_usage", server.name]["status"]["inhibitedBy"]
    assert seen["memory_usage", "elsewhere"]["status"]["inhibitedBy"] == []
    # Neither critical nor a warning: nobody is told, everybody can see.
    assert [receiver["name"] for receiver in seen["unknown", None]["receivers"]] == ["nobody"]
    assert list(messages(monitor, "/warning", "unknown")) == list(messages(monitor, "/critical", "unknown")) == []


def listening(machine):
    """Where Prometheus, Alertmanager and the exporter do; the kernel keeps 15 letters of a program's name."""
    lines = [line for line in machine.run("ss", "-Hltunp").splitlines() if '(("prometheus' in line]
    return {line.split()[4] for line in lines}


def test_nothing_listens_where_nobody_was_meant_to_come_in(site):
    server, monitor = site.servers
    assert listening(monitor) == {"127.0.0.1:9090", "127.0.0.1:9093", f"{monitor.address}:9100"}
    assert listening(server) == {f"{server.address}:9100"}


def test_who_reaches_prometheus_cannot_stop_it_or_delete(site):
    _, monitor = site.servers

    def post(path):
        return monitor.run("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-X", "POST", f"{PROMETHEUS}/{path}")

    assert post("-/quit") == post("-/reload") == "403"
    assert "admin APIs disabled" in monitor.run("curl", "-s", "-X", "POST", f"{PROMETHEUS}/api/v1/admin/tsdb/snapshot")
    assert monitor.property("prometheus", "ActiveState") == "active"


def test_what_is_kept_is_bounded(site):
    _, monitor = site.servers
    flags = ask(monitor, "status/flags")
    assert (flags["storage.tsdb.retention.time"], flags["storage.tsdb.retention.size"]) == ("30d", "10GiB")


def test_the_exporter_tells_of_our_units_and_of_what_the_host_has_left(site):
    server, monitor = site.servers
    units = {each["metric"]["name"] for each in ask(monitor, "query", query="node_systemd_unit_state == 1")["result"]}
    assert {"qwen3@1.service", "qwen3@2.service", "haproxy.service", "prometheus.service"} <= units
    assert {name for name in units if name.startswith(("ssh", "systemd", "dbus", "cron"))} == set()
    assert value(monitor, f'node_memory_MemAvailable_bytes{{host="{server.name}"}}') > 0
    page = (REPOSITORY / "monitoring/dashboards/system.json").read_text(encoding="utf-8")
    shown = set(re.findall(r"\bnode_\w+(?=\{)", page))
    pressure = {name for name in shown if name.startswith("node_pressure_")}  # not every kernel tells it
    told = {name for name in shown if ask(monitor, "query", query=f'{name}{{environment=~".+"}}')["result"]}
    assert shown - pressure <= told
    assert value(monitor, "sum(node_scrape_collector_success == bool 0)") == 0
    # The hosts' mounts, and not those of the exporter's own view, in which all is read-only.
    assert value(monitor, f'node_filesystem_readonly{{host="{server.name}",mountpoint="/tmp"}}') == 0


def test_the_token_is_where_only_alertmanager_reads_it(site):
    _, monitor = site.servers
    lines = monitor.run("sh", "-c", "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ | tr '\\0' '\\n'")
    assert TOKEN not in lines
    assert TOKEN not in monitor.run("journalctl", "--no-pager")
    holding = monitor.run("grep", "-rl", TOKEN, "/etc", "/var/lib", "/opt", check=False).split()
    assert [monitor.run("stat", "-c", "%a %U %G", path).strip() for path in holding] == ["640 root alertmanager"]
    for user in ("prometheus", "node-exporter", "nobody"):
        assert TOKEN not in monitor.run("setpriv", f"--reuid={user}", "--clear-groups", "cat", *holding, check=False)
    assert TOKEN in monitor.run(
        "setpriv", "--reuid=alertmanager", "--regid=alertmanager", "--clear-groups", "cat", *holding
    )


@pytest.mark.parametrize(
    ("unit", "user"),
    [
        ("prometheus", "prometheus"),
        ("prometheus-alertmanager", "alertmanager"),
        ("prometheus-node-exporter", "node-exporter"),
    ],
)
def test_the_units_are_shut_in_and_each_has_a_user_of_its_own(site, unit, user):
    _, monitor = site.servers
    said = monitor.run("systemd-analyze", "security", "--no-pager", f"{unit}.service")
    print("\n".join(line for line in said.splitlines() if line.startswith(("✗", "→"))))
    assert float(said.rsplit("exposure level for", 1)[1].split(":")[1].split()[0]) <= 1.5
    assert monitor.run("ps", "-o", "user:32=", "-p", monitor.property(unit, "MainPID")).strip() == user


def test_an_exporter_that_ends_is_started_again(site):
    server, _ = site.servers
    before = server.property("prometheus-node-exporter", "MainPID")
    server.run("kill", "-9", before)
    wait_until(lambda: server.property("prometheus-node-exporter", "MainPID") not in {before, "0"}, "started again")


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"alertmanager_critical": [{"webhook": "oncall.example.org"}]}, "is no receiver: give {webhook: URL}"),
        ({"alertmanager_critical": [{"webhook": "https://me:secret@example.org"}]}, "without a password in it"),
        ({"alertmanager_warning": [{"pager": "me"}]}, "is no receiver"),
        ({"alertmanager_warning": [{"webhook": "https://example.org", "credentials_file": "token"}]}, "the whole path"),
        ({"alertmanager_smarthost": ""}, "give HOST:PORT of a mail server"),
        ({"alertmanager_smtp_user": "me"}, "give both alertmanager_smtp_user and alertmanager_smtp_password_file"),
        ({"alertmanager_group_wait": "soon"}, 'alertmanager_group_wait: "soon" is no time'),
        ({"alertmanager_address": "192.0.2.1"}, 'no address "192.0.2.1"'),
        ({"prometheus_retention_time": "a month"}, 'prometheus_retention_time: "a month" is no time'),
        ({"prometheus_retention_size": "10 GiB"}, 'prometheus_retention_size: "10 GiB" is no size'),
        ({"prometheus_address": "prometheus.example.org"}, 'no address "prometheus.example.org"'),
        ({"node_exporter_units": "qwen3@\\d"}, "give an expression without spaces, quotes"),
    ],
)
def test_what_cannot_work_stops_before_a_host_is_changed(site, variables, said):
    before = state(*site.servers)

    code, told = site.play("monitoring", "-e", json.dumps(variables))

    assert code != 0
    assert said in told.replace('\\"', '"'), told
    assert state(*site.servers) == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"alerts": {"low_qp": 1}}, "alerts.low_qp: no such alert; did you mean 'low_qps'?"),
        ({"serving": {"api_keys_file": "/etc/qwen3/api_keys"}}, "give the metrics a port of their own"),
    ],
)
def test_an_environment_that_cannot_be_watched_stops_before_a_host_is_changed(site, change, said):
    before = state(*site.servers)
    site.write(ENVIRONMENT | change)
    try:
        code, told = site.play("monitoring")
    finally:
        site.write(ENVIRONMENT)

    assert code != 0
    assert said in told
    assert state(*site.servers) == before


def test_a_site_without_a_monitor_is_refused(site, tmp_path):
    server, _ = site.servers
    alone = Site(tmp_path, [server], ENVIRONMENT, site.key)

    code, told = alone.play("monitoring")

    assert code != 0
    assert "none of the hosts has the role monitor" in told


def test_rules_that_prometheus_does_not_understand_never_replace_those_that_it_has(site, tmp_path):
    _, monitor = site.servers
    for package in ("monitoring", "model_server"):
        shutil.copytree(REPOSITORY / package, tmp_path / package)
    shutil.copy(REPOSITORY / "runconfig.py", tmp_path)
    alerts = tmp_path / "monitoring/alerts.yml"
    text = alerts.read_text(encoding="utf-8")
    assert "changes(" in text
    alerts.write_text(text.replace("changes(", "chnages("), encoding="utf-8")
    before = monitor.run("sha256sum", "/etc/prometheus/qwen3.rules.yml")

    code, told = site.play("monitoring", "-e", f"prometheus_project={tmp_path}")

    assert code != 0
    assert "chnages" in told
    assert monitor.run("sha256sum", "/etc/prometheus/qwen3.rules.yml") == before
    assert ask(monitor, "rules")["groups"]


def test_a_broken_configuration_never_replaces_the_one_that_works(site):
    """Preflight lets it through, promtool does not: a time that is longer than Prometheus can count."""
    _, monitor = site.servers
    before = monitor.run("sha256sum", "/etc/prometheus/prometheus.yml")

    code, told = site.play("monitoring", "-e", "prometheus_evaluation_interval=999999y")

    assert code != 0
    assert "failed to validate" in told
    assert monitor.run("sha256sum", "/etc/prometheus/prometheus.yml") == before


def test_other_receivers_are_taken_without_a_restart_and_secrets_of_former_ones_go(site):
    _, monitor = site.servers
    pid = monitor.property("prometheus-alertmanager", "MainPID")
    other = {"alertmanager_critical": [{"webhook": "http://127.0.0.1:5001/other"}], "alertmanager_group_wait": "2s"}

    code, said = site.play("monitoring", "-e", json.dumps(other))

    assert code == 0, said
    assert monitor.property("prometheus-alertmanager", "MainPID") == pid
    assert monitor.run("ls", "/etc/prometheus/alertmanager-secrets") == ""
    running = json.loads(monitor.run("curl", "-sSf", "http://127.0.0.1:9093/api/v2/status"))["config"]["original"]
    assert "http://127.0.0.1:5001/other" in running
    assert "credentials_file" not in running


def test_two_monitors_both_know_and_one_of_them_tells(site, tmp_path):
    """The same machines, of which the first watches too. From here on the site is another one."""
    server, monitor = (dataclasses.replace(each, roles=(*each.roles, "monitor")) for each in site.servers)
    both = Site(tmp_path, [server, dataclasses.replace(monitor, roles=("monitor",))], ENVIRONMENT, site.key)
    both.words = site.words
    for machine, other in ((server, monitor), (monitor, server)):
        # Past the firewall of site.yml, where it has one: what monitors tell each other, and the receiver of the test.
        rule = ("insert", "rule", "inet", "qwen3", "input", "ip", "saddr", other.address, "accept")
        machine.run("nft", *rule, check=False)
    receiver = {"alertmanager_warning": [{"webhook": f"http://{monitor.address}:5001/both"}]}

    code, said = both.play("monitoring", "-e", json.dumps(receiver))
    assert code == 0, said

    def peers(machine):
        told = json.loads(machine.run("curl", "-sSf", f"http://{machine.address}:9093/api/v2/status"))
        return {each["address"] for each in told["cluster"]["peers"]}

    for machine in (server, monitor):
        address = f"http://{machine.address}:9093"
        expected = {f"{each.address}:9094" for each in (server, monitor)}
        wait_until(lambda on=machine, those=expected: peers(on) == those, "they found each other")
        everyone = {f"http://{each.address}:9093/api/v2/alerts" for each in (server, monitor)}
        wait_until(lambda on=machine, those=everyone: alertmanagers(on) == those, "Prometheus tells both")
        labels = ("alertname=high_latency", "severity=warning", "job=other", "host=elsewhere")
        machine.run("amtool", f"--alertmanager.url={address}", "alert", "add", *labels)

    wait_until(lambda: list(messages(monitor, "/both", "high_latency")), "one of them tells")
    # The other one waits for 15 s, and tells if nobody did.
    time.sleep(25)
    assert len(list(messages(monitor, "/both", "high_latency"))) == 1


def test_a_site_of_one_host_keeps_to_loopback(site, tmp_path):
    _, monitor = site.servers
    alone = Site(tmp_path, [dataclasses.replace(monitor, roles=("model_server", "monitor"))], ENVIRONMENT, site.key)
    alone.words = site.words

    code, said = alone.play("monitoring")

    assert code == 0, said
    assert listening(monitor) == {"127.0.0.1:9090", "127.0.0.1:9093", "127.0.0.1:9100"}
    urls = {each["scrapeUrl"] for each in ask(monitor, "targets")["activeTargets"]}
    assert {url.split("/")[2].rsplit(":", 1)[0] for url in urls} == {"127.0.0.1"}
