def test_one(run, queue, url):
    p = run("producer.py", "--count", "3", "--queue", queue, "--json")
    assert p.wait() == 0
    assert p.wait_event("finished")["confirmed"] == 3
