"""Imported before ``openvino``: what runs here is reported to nobody.

``import openvino`` (2026.4) sends an event to Google Analytics and writes ``~/intel/openvino_ga_cid``, unless the
package that does it is absent or CI is set; it falls back to a stub then (openvino/tools/ovc/telemetry_utils.py).
"""

import sys

sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # the documented way to make an import fail
