"""Adds up the JUnit reports of a test run and prints the closing line of tools/test.

Usage: test_totals.py REPORTS_DIR BROKEN_STAGES. A stage that broke outside its tests (its build, say)
counts as one failure. Exits 1 unless something passed and nothing failed.
"""

import pathlib
import sys
import xml.etree.ElementTree as ElementTree

passed, failed, skipped = 0, int(sys.argv[2]), 0
for report in sorted(pathlib.Path(sys.argv[1]).glob("*.xml")):
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            failed += 1
            print(f"failed: {report.stem}: {case.get('classname') or ''} {case.get('name')}")
        elif case.find("skipped") is not None:
            skipped += 1
        else:
            passed += 1
print(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
sys.exit(0 if passed and not failed else 1)
