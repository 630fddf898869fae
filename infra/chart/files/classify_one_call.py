"""What ``helm test`` runs in the server's image: one call gets a category, or this fails and says why.

Arguments: the server's address, seconds to wait, and the file with the API keys if it asks for them.
"""  # noqa: INP001  runs on its own

import json
import sys
import urllib.error
import urllib.request

url, timeout_s, *keys_file = sys.argv[1:]
headers = {"Content-Type": "application/json"}
if keys_file:
    with open(keys_file[0], encoding="utf-8") as lines:  # noqa: PTH123  as the rest: what Python starts with
        entries = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    headers["Authorization"] = "Bearer " + entries[0].rpartition(":")[2].strip()
body = json.dumps({"text": "宽带断了三天没人来修,客服电话也打不通。"}).encode()
request = urllib.request.Request(f"{url}/api/v1/classify", body, headers)  # noqa: S310  the chart's address
try:
    with urllib.request.urlopen(request, timeout=float(timeout_s)) as answer:  # noqa: S310  as above
        found = json.load(answer)
except urllib.error.HTTPError as error:
    sys.exit(f"{url} answered {error.code}: {error.read().decode(errors='replace')}")
except (OSError, ValueError) as error:
    sys.exit(f"{url} does not answer: {error}")
if not (isinstance(found, dict) and isinstance(found.get("category"), str) and found["category"]):
    sys.exit(f"{url} answered without a category: {found}")
print(f"{found['category']} ({found.get('confidence')})")
